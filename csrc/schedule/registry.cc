// The table of algorithms by collective and name.
#include "schedule/registry.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "schedule/builders.h"

namespace hier {
namespace {

// A schedule holds every move of every rank: a ring of p ranks has 2 p (p - 1) of them.
constexpr int kMaxWorldSize = 4096;

constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
    {"bucket", "ring"},  // the paper's word
};

Scatter ring(int p) { return radix_reduce_scatter({{p, Exchange::ring}}); }
Scatter direct(int p) { return radix_reduce_scatter({{p}}); }
Scatter bcube(int p) { return radix_reduce_scatter(bcube_levels(p)); }
Scatter torus(int p) { return radix_reduce_scatter(torus_levels(p)); }
Schedule halving(int p) {
  std::vector<int> owners(static_cast<size_t>(p));
  std::iota(owners.begin(), owners.end(), 0);
  return tree_reduce_scatter(p, owners);
}

Schedule there_and_back(const Schedule& reduce_scatter) {
  return then(reduce_scatter, reversed(reduce_scatter));
}

// An allreduce of a scatter; a reduce-scatter in which rank r ends with chunk r; and its reverse.
template <Scatter (*scatter)(int)>
Schedule both(int p, int) {
  return there_and_back(scatter(p).schedule);
}
template <Scatter (*scatter)(int)>
Schedule owned(int p) {
  return owner_order(scatter(p));
}
template <Schedule (*make)(int)>
Schedule forth(int p, int) {
  return make(p);
}
template <Schedule (*make)(int)>
Schedule back(int p, int) {
  return reversed(make(p));
}

bool always(size_t, int) { return true; }
template <size_t kib>
bool up_to(size_t bytes, int) {
  return bytes <= kib << 10;
}
// In a tree parts pass through other ranks, and the root has fewer messages.
bool small_parts(size_t bytes, int p) {
  return bytes <= (size_t{2} << 10) * static_cast<size_t>(p);
}
// Of two ranks, scatter and allgather would send half of the buffer back to the root.
bool small_or_two(size_t bytes, int p) { return bytes <= 256 << 10 || p == 2; }

Schedule circulant_allreduce(int p, int) { return there_and_back(circulant_reduce_scatter(p)); }
Schedule binomial_allreduce(int p, int) { return there_and_back(tree_reduce(p, 0)); }
Schedule tree_broadcast(int p, int root) { return reversed(tree_reduce(p, root)); }
Schedule tree_scatter(int p, int root) { return reversed(tree_gather(p, root)); }
Schedule direct_scatter(int p, int root) { return reversed(direct_gather(p, root)); }
Schedule scatter_allgather(int p, int root) {
  return then(tree_scatter(p, root), back<circulant_reduce_scatter>(p, root));
}
Schedule reduce_scatter_gather(int p, int root) { return then(halving(p), tree_gather(p, root)); }

constexpr bool kCanonical = true, kOwnOrder = false;
constexpr const char* kFirstHalf =
    "the first half of the allreduce, with chunks named after their owners";
constexpr const char* kBackwards = "the reduce-scatter backwards";

using C = Collective;
// clang-format off
constexpr AlgorithmInfo kAlgorithms[] = {
    {C::allreduce, "recursive_doubling",
     "whole buffers at doubling distance: fewest rounds, for small buffers",
     kCanonical, up_to<16>, forth<recursive_doubling>},
    {C::allreduce, "halving_doubling",
     "the paper's recursive halving and doubling, nearest ranks first; binary blocks where p is no "
     "power of two",
     kCanonical, up_to<4096>, forth<halving_doubling>},
    {C::allreduce, "circulant",
     "Traff's circulant graph: any p in 2 ceil(lg p) rounds at the smallest volume",
     kOwnOrder, nullptr, circulant_allreduce},
    {C::allreduce, "bcube",
     "mixed radix, the factors of p: few rounds of several messages, sends staggered",
     kOwnOrder, nullptr, both<bcube>},
    {C::allreduce, "ring",
     "reduce-scatter and allgather around a ring; `bucket` is the paper's word for it and an alias",
     kOwnOrder, always, both<ring>},
    {C::allreduce, "torus",
     "two rings, p cut as near to a square as it goes; a prime p is one ring",
     kOwnOrder, nullptr, both<torus>},
    {C::allreduce, "direct", "everyone to everyone, twice (two-shot)",
     kOwnOrder, nullptr, both<direct>},
    {C::allreduce, "binomial", "reduce to rank 0 and broadcast, whole buffers",
     kCanonical, nullptr, binomial_allreduce},

    {C::reduce_scatter, "halving_doubling", "recursive halving, for any p by the same tree",
     kCanonical, nullptr, forth<halving>},
    {C::reduce_scatter, "circulant", kFirstHalf,
     kOwnOrder, up_to<256>, forth<circulant_reduce_scatter>},
    {C::reduce_scatter, "bcube", kFirstHalf, kOwnOrder, nullptr, forth<owned<bcube>>},
    {C::reduce_scatter, "ring", kFirstHalf, kOwnOrder, always, forth<owned<ring>>},
    {C::reduce_scatter, "torus", kFirstHalf, kOwnOrder, nullptr, forth<owned<torus>>},
    {C::reduce_scatter, "direct", kFirstHalf, kOwnOrder, nullptr, forth<owned<direct>>},

    {C::allgather, "halving_doubling", kBackwards, kOwnOrder, nullptr, back<halving>},
    {C::allgather, "circulant", kBackwards, kOwnOrder, up_to<256>, back<circulant_reduce_scatter>},
    {C::allgather, "bcube", kBackwards, kOwnOrder, nullptr, back<owned<bcube>>},
    {C::allgather, "ring", kBackwards, kOwnOrder, always, back<owned<ring>>},
    {C::allgather, "torus", kBackwards, kOwnOrder, nullptr, back<owned<torus>>},
    {C::allgather, "direct", kBackwards, kOwnOrder, nullptr, back<owned<direct>>},

    {C::broadcast, "binomial", "whole buffers down a binomial tree",
     kOwnOrder, small_or_two, tree_broadcast},
    {C::broadcast, "scatter_allgather",  // 2 (p-1)/p n instead of n lg p
     "van de Geijn: scatter down the tree, then the circulant allgather; for large buffers",
     kOwnOrder, always, scatter_allgather},

    {C::reduce, "binomial", "whole buffers up a binomial tree, for every root",
     kCanonical, always, tree_reduce},
    {C::reduce, "reduce_scatter_gather",
     "recursive halving, then gather up the tree; for large buffers",
     kCanonical, nullptr, reduce_scatter_gather},

    {C::gather, "binomial", "up a binomial tree; for small parts",
     kOwnOrder, small_parts, tree_gather},
    {C::gather, "direct", "everyone to the root", kOwnOrder, always, direct_gather},

    {C::scatter, "binomial", "down a binomial tree: the gather backwards; for small parts",
     kOwnOrder, small_parts, tree_scatter},
    {C::scatter, "direct", "the root to everyone", kOwnOrder, always, direct_scatter},

    {C::alltoall, "pairwise",
     "round t serves the rank t + 1 further on, so that each rank receives from one at a time",
     kOwnOrder, always, forth<pairwise_exchange>},

    {C::barrier, "dissemination", "round t signals the rank 2^t further on",
     kOwnOrder, always, forth<dissemination>},
};
// clang-format on

std::string joined(const std::vector<AlgorithmInfo>& rows) {
  std::string text;
  for (const AlgorithmInfo& row : rows) {
    text += text.empty() ? "" : ", ";
    text += row.name;
  }
  return text;
}

std::string out_of_range(const char* what, int first, int last, int value) {
  return std::string(what) + " must be " + std::to_string(first) + " to " + std::to_string(last) +
         ", not " + std::to_string(value);
}

}  // namespace

std::vector<AlgorithmInfo> algorithms(Collective collective) {
  std::vector<AlgorithmInfo> rows;
  std::ranges::copy_if(kAlgorithms, std::back_inserter(rows),
                       [&](const AlgorithmInfo& row) { return row.collective == collective; });
  return rows;
}

std::vector<std::pair<std::string_view, std::string_view>> algorithm_aliases() {
  return {std::begin(kAliases), std::end(kAliases)};
}

std::string_view resolve_alias(std::string_view algorithm) {
  for (const auto& [alias, name] : kAliases)
    if (algorithm == alias) return name;
  return algorithm;
}

std::string_view choose_unmeasured(Collective collective, size_t bytes, int world_size) {
  for (const AlgorithmInfo& row : kAlgorithms)
    if (row.collective == collective && row.suits && row.suits(bytes, world_size)) return row.name;
  return "";  // unreachable: each collective has a row that always suits
}

Schedule build(Collective collective, std::string_view algorithm, int world_size, int root) {
  if (world_size < 1 || world_size > kMaxWorldSize)
    throw std::invalid_argument(out_of_range("world size", 1, kMaxWorldSize, world_size));
  if (root < 0 || root >= world_size)
    throw std::invalid_argument(out_of_range("root", 0, world_size - 1, root));
  const std::string_view name = resolve_alias(algorithm);
  for (const AlgorithmInfo& row : kAlgorithms)
    if (row.collective == collective && row.name == name) return row.make(world_size, root);
  throw std::invalid_argument(std::string(name_of(collective)) + " has no algorithm '" +
                              std::string(algorithm) + "'; it has " +
                              joined(algorithms(collective)));
}

}  // namespace hier
