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
    case Collective::scatter:
      return "scatter";
    case Collective::alltoall:
      return "alltoall";
  }
  return "unknown collective";
}

bool has_root(Collective c) {
  return c == Collective::broadcast || c == Collective::reduce || c == Collective::gather ||
         c == Collective::scatter;
}

bool reduces(Collective c) {
  return c == Collective::allreduce || c == Collective::reduce || c == Collective::reduce_scatter;
}

bool has_parts(Collective c) {
  return c == Collective::allgather || c == Collective::reduce_scatter || c == Collective::gather ||
         c == Collective::scatter;
}

std::string describe(const Move& move) {
  std::string text = std::to_string(move.src) + (move.reduce ? "+>" : "=>");
  text += std::to_string(move.dst) + "[" + std::to_string(move.lo);
  if (move.hi - move.lo != 1) text += "-" + std::to_string(move.hi - 1);
  return text + "]";
}

}  // namespace hier
