// The table of algorithms by collective and name.
#include <stdexcept>

#include "schedule/builders.h"

namespace hier {
namespace {

// A schedule holds every move of every rank: a ring of p ranks has 2 p (p - 1) of them.
constexpr int kMaxWorldSize = 4096;

Scatter ring(int p) { return radix_reduce_scatter({{p, Exchange::ring}}); }
Scatter direct(int p) { return radix_reduce_scatter({{p}}); }
Scatter bcube(int p) { return radix_reduce_scatter(bcube_levels(p)); }
Scatter torus(int p) { return radix_reduce_scatter(torus_levels(p)); }

Schedule there_and_back(const Schedule& reduce_scatter) {
  return then(reduce_scatter, reversed(reduce_scatter));
}

// Reduce-scatters in which rank r ends with chunk r; each allgather is one of them reversed.
struct ScatterEntry {
  std::string_view name;
  Schedule (*make)(int p);
};
constexpr ScatterEntry kScatters[] = {
    {"ring", [](int p) { return owner_order(ring(p)); }},
    {"halving_doubling", [](int p) { return tree_reduce_scatter(p, p); }},
    {"bcube", [](int p) { return owner_order(bcube(p)); }},
    {"circulant", circulant_reduce_scatter},
    {"torus", [](int p) { return owner_order(torus(p)); }},
    {"direct", [](int p) { return owner_order(direct(p)); }},
};

struct Entry {
  Collective collective;
  std::string_view name;
  Schedule (*make)(int p, int root);
};
constexpr Entry kEntries[] = {
    {Collective::allreduce, "ring", [](int p, int) { return there_and_back(ring(p).schedule); }},
    {Collective::allreduce, "halving_doubling", [](int p, int) { return halving_doubling(p); }},
    {Collective::allreduce, "recursive_doubling", [](int p, int) { return recursive_doubling(p); }},
    {Collective::allreduce, "bcube", [](int p, int) { return there_and_back(bcube(p).schedule); }},
    {Collective::allreduce, "circulant",
     [](int p, int) { return there_and_back(circulant_reduce_scatter(p)); }},
    {Collective::allreduce, "torus", [](int p, int) { return there_and_back(torus(p).schedule); }},
    {Collective::allreduce, "direct",
     [](int p, int) { return there_and_back(direct(p).schedule); }},
    {Collective::allreduce, "binomial",
     [](int p, int) { return there_and_back(tree_reduce(p, 0)); }},
    {Collective::broadcast, "binomial",
     [](int p, int root) { return reversed(tree_reduce(p, root)); }},
    {Collective::broadcast, "scatter_allgather",  // van de Geijn: 2 (p-1)/p n instead of n lg p
     [](int p, int root) {
       return then(reversed(tree_gather(p, root)), reversed(circulant_reduce_scatter(p)));
     }},
    {Collective::reduce, "binomial", tree_reduce},
    {Collective::reduce, "reduce_scatter_gather",
     [](int p, int root) { return then(tree_reduce_scatter(p, p), tree_gather(p, root)); }},
    {Collective::gather, "binomial", tree_gather},
    {Collective::gather, "direct", direct_gather},
    {Collective::scatter, "binomial",
     [](int p, int root) { return reversed(tree_gather(p, root)); }},
    {Collective::scatter, "direct",
     [](int p, int root) { return reversed(direct_gather(p, root)); }},
    {Collective::alltoall, "pairwise", [](int p, int) { return pairwise_exchange(p); }},
    {Collective::barrier, "dissemination", [](int p, int) { return dissemination(p); }},
};

bool scatters(Collective collective) {
  return collective == Collective::reduce_scatter || collective == Collective::allgather;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> algorithms(Collective collective) {
  std::vector<std::string> names;
  if (scatters(collective))
    for (const ScatterEntry& entry : kScatters) names.emplace_back(entry.name);
  for (const Entry& entry : kEntries)
    if (entry.collective == collective) names.emplace_back(entry.name);
  return names;
}

Schedule build(Collective collective, std::string_view algorithm, int world_size, int root) {
  if (world_size < 1 || world_size > kMaxWorldSize)
    throw std::invalid_argument("world size must be 1 to " + std::to_string(kMaxWorldSize) +
                                ", not " + std::to_string(world_size));
  if (root < 0 || root >= world_size)
    throw std::invalid_argument("root must be 0 to " + std::to_string(world_size - 1) + ", not " +
                                std::to_string(root));
  const std::string_view name = algorithm == "bucket" ? "ring" : algorithm;  // the paper's word
  if (scatters(collective))
    for (const ScatterEntry& entry : kScatters)
      if (entry.name == name) {
        const Schedule reduce_scatter = entry.make(world_size);
        return collective == Collective::allgather ? reversed(reduce_scatter) : reduce_scatter;
      }
  for (const Entry& entry : kEntries)
    if (entry.collective == collective && entry.name == name) return entry.make(world_size, root);
  throw std::invalid_argument(std::string(name_of(collective)) + " has no algorithm '" +
                              std::string(algorithm) + "'; it has " +
                              joined(algorithms(collective)));
}

}  // namespace hier
