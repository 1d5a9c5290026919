// Names of collectives and moves, for messages and pictures.
#include <string>

#include "schedule/builders.h"

namespace hier {

const char* name_of(Collective collective) {
  switch (collective) {
    case Collective::allreduce:
      return "allreduce";
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::allgather:
      return "allgather";
    case Collective::broadcast:
      return "broadcast";
    case Collective::reduce:
      return "reduce";
    case Collective::gather:
      return "gather";
    case Collective::barrier:
      return "barrier";
  }
  return "unknown collective";
}

std::string describe(const Move& move) {
  std::string text = std::to_string(move.src) + (move.reduce ? "+>" : "=>");
  text += std::to_string(move.dst) + "[" + std::to_string(move.lo);
  if (move.hi - move.lo != 1) text += "-" + std::to_string(move.hi - 1);
  return text + "]";
}

}  // namespace hier
