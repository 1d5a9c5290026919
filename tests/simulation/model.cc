// The meaning of collectives, from the table alone.
#include "model.h"

#include <algorithm>

#include "group/parts.h"

namespace hier::simulation {

Model::Model(const Scenario& scenario)
    : scenario_(scenario),
      buffers_(scenario.num_buffers, std::vector<Contents>(scenario.node_of_rank.size())) {
  for (size_t i = 0; i < scenario.operations.size(); ++i) apply(i);
}

std::vector<Value> Model::input(size_t operation, int rank) const {
  std::vector<Value> values(scenario_.operations[operation].count);
  uint64_t x = scenario_.seed * 31 + operation * 1009 + static_cast<uint64_t>(rank) * 7919;
  for (Value& value : values) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<Value>(x >> 56);  // small: sums of sums must fit
  }
  return values;
}

// What holders of the chunk have at this element once the call is over.
Value Model::finished(const Operation& op, int chunk, size_t element,
                      const std::vector<Contents>& before, bool& defined) const {
  const CollectiveInfo& what = info(op.what);
  const int p = scenario_.world_size();
  if (!what.reduces) {
    const Contents& source = before[source_of(what, chunk, op.root, p)];
    defined = source.defined[element];
    return source.values[element];
  }
  Value sum = 0;
  for (const Contents& contents : before) {
    sum += contents.values[element];
    defined = defined && contents.defined[element];
  }
  return sum;
}

void Model::apply(size_t number) {
  const Operation& op = scenario_.operations[number];
  const int p = scenario_.world_size();
  std::vector<Contents> before(p);
  for (int rank = 0; rank < p; ++rank) {
    if (op.fresh || op.message) {
      before[rank] = {input(number, rank), std::vector<char>(op.count, 1)};
    } else {
      before[rank] = buffers_[op.buffer][rank];
      before[rank].values.resize(op.count);
      before[rank].defined.resize(op.count, 0);
    }
  }
  auto& after = after_.emplace_back(before);
  if (op.message) {
    after[op.to] = before[op.from];
    return;
  }
  const CollectiveInfo& what = info(op.what);
  const bool pairs = what.chunks == Chunks::per_pair;
  const int chunks = what.chunks == Chunks::any ? 1 : p;
  const auto parts = parts_of(op.bounds, op.count, p);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Range range =
        what.chunks == Chunks::any ? Range{0, op.count} : Range{parts[chunk], parts[chunk + 1]};
    for (int rank = 0; rank < p; ++rank) {
      const bool has = pairs || holds(what.after, rank, chunk, op.root, p);
      for (size_t i = range.lo; i < range.hi; ++i) {
        bool defined = has;
        Value value = 0;
        if (pairs) {  // from rank `chunk`, its part for this one
          value = before[chunk].values[parts[rank] + (i - range.lo)];
        } else if (has) {
          value = finished(op, chunk, i, before, defined);
        }
        after[rank].values[i] = value;
        after[rank].defined[i] = defined;
      }
    }
  }
  for (int rank = 0; rank < p; ++rank) {
    Contents& now = buffers_[op.buffer][rank];
    if (op.fresh) now = {};  // behind the new data the memory has been used for something else
    const size_t size = std::max(now.values.size(), op.count);
    now.values.resize(size);
    now.defined.resize(size, 0);
    std::copy(after[rank].values.begin(), after[rank].values.end(), now.values.begin());
    std::copy(after[rank].defined.begin(), after[rank].defined.end(), now.defined.begin());
  }
}

}  // namespace hier::simulation
