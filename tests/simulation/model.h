// What each rank's memory must hold after each call, computed without any communication.
#pragma once

#include <cstdint>
#include <vector>

#include "scenario.h"

namespace hier::simulation {

using Value = int32_t;  // of 4 bytes: jobs end with padding now and then

// Of one buffer of one rank. Where `defined` is false, the contents may be anything.
struct Contents {
  std::vector<Value> values;
  std::vector<char> defined;
};

class Model {
 public:
  explicit Model(const Scenario& scenario);

  // What a rank puts in before the call, if the call works on new data; of an alltoall or a
  // message, its input.
  std::vector<Value> input(size_t operation, int rank) const;
  // The first elements of the buffer after the call. Of a message: what the receiver has.
  const Contents& after(size_t operation, int rank) const { return after_[operation][rank]; }

 private:
  void apply(size_t number);
  Value finished(const Operation& op, int chunk, size_t element,
                 const std::vector<Contents>& before, bool& defined) const;

  const Scenario& scenario_;
  std::vector<std::vector<Contents>> buffers_;  // by buffer and rank: as they are now
  std::vector<std::vector<Contents>> after_;    // by operation and rank
};

}  // namespace hier::simulation
