// Python face of csrc/schedule: Schedule (immutable), Collective, build, algorithms, hierarchical.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "schedule/builders.h"
#include "schedule/registry.h"
#include "schedule/stages.h"

namespace py = pybind11;

namespace hier {
namespace {

constexpr py::ssize_t kColumns = 6;  // round, src, dst, lo, hi, reduce

py::list rounds_of(const Schedule& schedule) {
  py::list rounds;
  for (const Round& round : schedule.rounds) {
    py::list moves;
    for (const Move& m : round) moves.append(py::make_tuple(m.src, m.dst, m.lo, m.hi, m.reduce));
    rounds.append(moves);
  }
  return rounds;
}

py::array_t<int32_t> moves_of(const Schedule& schedule) {
  py::ssize_t num_moves = 0;
  for (const Round& round : schedule.rounds) num_moves += static_cast<py::ssize_t>(round.size());
  py::array_t<int32_t> result({num_moves, kColumns});
  int32_t* row = result.mutable_data();
  for (size_t t = 0; t < schedule.rounds.size(); ++t)
    for (const Move& m : schedule.rounds[t])
      for (int32_t value : {static_cast<int32_t>(t), m.src, m.dst, m.lo, m.hi, int32_t{m.reduce}})
        *row++ = value;
  return result;
}

using MoveArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

Schedule from_moves(int world_size, int num_chunks, const MoveArray& moves) {
  if (moves.ndim() != 2 || moves.shape(1) != kColumns)
    throw std::invalid_argument(
        "from_moves: moves must have the shape [n, 6]: round, src, dst, lo, hi, reduce");
  Schedule schedule{world_size, num_chunks, {}};
  const auto rows = moves.unchecked<2>();
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    const int32_t round = rows(i, 0), last = static_cast<int32_t>(schedule.rounds.size()) - 1;
    if (round < 0 || round < last || round > last + moves.shape(0))
      throw std::invalid_argument("from_moves: rounds must ascend from 0, but row " +
                                  std::to_string(i) + " has round " + std::to_string(round));
    schedule.rounds.resize(static_cast<size_t>(std::max(last, round)) + 1);
    schedule.rounds[static_cast<size_t>(round)].push_back(
        {rows(i, 1), rows(i, 2), rows(i, 3), rows(i, 4), rows(i, 5) != 0});
  }
  if (const std::string wrong = malformed(schedule); !wrong.empty())
    throw std::invalid_argument("from_moves: " + wrong);
  return schedule;
}

Schedule with_overlay(Schedule schedule, size_t first_round, const Schedule& sub,
                      const std::vector<int>& ranks, int first_chunk) {
  overlay(schedule, first_round, sub, ranks, first_chunk);
  if (const std::string wrong = malformed(schedule); !wrong.empty())
    throw std::invalid_argument("overlay: " + wrong);
  return schedule;
}

std::string repr(const Schedule& schedule) {
  size_t num_moves = 0;
  for (const Round& round : schedule.rounds) num_moves += round.size();
  return "<Schedule of " + std::to_string(schedule.world_size) + " ranks, " +
         std::to_string(schedule.num_chunks) + " chunks, " +
         std::to_string(schedule.rounds.size()) + " rounds, " + std::to_string(num_moves) +
         " moves>";
}

void register_class(py::module_& m) {
  py::class_<Schedule>(m, "Schedule", "Who sends which chunks to whom, round by round; immutable.")
      .def_static("from_moves", from_moves, py::arg("world_size"), py::arg("num_chunks"),
                  py::arg("moves"),
                  "The schedule of an int array [n, 6] with the rows (round, src, dst, lo, hi, "
                  "reduce), in ascending rounds. Raises ValueError if a move cannot be.")
      .def_readonly("world_size", &Schedule::world_size)
      .def_readonly("num_chunks", &Schedule::num_chunks)
      .def_property_readonly("num_rounds", [](const Schedule& s) { return s.rounds.size(); })
      .def_property_readonly("rounds", rounds_of, "Per round a list of (src, dst, lo, hi, reduce).")
      .def("moves", moves_of, "int32 [n, 6]: round, src, dst, lo, hi, reduce.")
      .def("check", check, py::arg("collective"), py::arg("root") = 0,
           "'' if the schedule keeps the collective's promise, else the first thing wrong.")
      .def("then", then, py::arg("second"), "This schedule, then the second.")
      .def("refine", refine, py::arg("factor"), "Each chunk becomes `factor` chunks.")
      .def("relabel", relabel, py::arg("new_chunk"), "Chunk c becomes chunk new_chunk[c].")
      .def("reversed", reversed, "The allgather that undoes this reduce-scatter.")
      .def("overlay", with_overlay, py::arg("first_round"), py::arg("sub"), py::arg("ranks"),
           py::arg("first_chunk"), "This schedule and, from first_round on, `sub` among `ranks`.")
      .def(
          "__eq__", [](const Schedule& a, const Schedule& b) { return a == b; }, py::is_operator())
      .def("__repr__", repr);
}

void register_collectives(py::module_& m) {
  py::enum_<Chunks>(m, "Chunks", "Into how many chunks a schedule cuts the buffer.")
      .value("any", Chunks::any)
      .value("per_rank", Chunks::per_rank)
      .value("per_pair", Chunks::per_pair);
  py::enum_<Collective> names(m, "Collective", "What a schedule promises.");
  for (const CollectiveInfo& row : collectives()) names.value(row.name, row.collective);
  const auto of = [](auto member) {
    return py::cpp_function([member](Collective c) { return info(c).*member; });
  };
  names.def_property_readonly("reduces", of(&CollectiveInfo::reduces))
      .def_property_readonly("rooted", of(&CollectiveInfo::rooted))
      .def_property_readonly("chunks", of(&CollectiveInfo::chunks))
      .def_property_readonly("promise", of(&CollectiveInfo::promise))
      .def(
          "source_of",
          [](Collective c, int chunk, int root, int p) {
            return source_of(info(c), chunk, root, p);
          },
          py::arg("chunk"), py::arg("root"), py::arg("world_size"),
          "The one rank whose data a finished chunk is; -1 where those of all are combined.")
      .def(
          "starts_with",
          [](Collective c, int rank, int chunk, int root, int p) {
            return holds(info(c).before, rank, chunk, root, p);
          },
          py::arg("rank"), py::arg("chunk"), py::arg("root"), py::arg("world_size"),
          "Whether the rank holds the chunk, or its contribution to it, before.")
      .def(
          "ends_with",
          [](Collective c, int rank, int chunk, int root, int p) {
            return holds(info(c).after, rank, chunk, root, p);
          },
          py::arg("rank"), py::arg("chunk"), py::arg("root"), py::arg("world_size"),
          "Whether the rank holds the finished chunk after.");
}

void register_algorithms(py::module_& m) {
  py::class_<AlgorithmInfo>(m, "AlgorithmInfo", "A row of the table of algorithms.")
      .def_readonly("name", &AlgorithmInfo::name)
      .def_readonly("what", &AlgorithmInfo::what)
      .def_readonly("canonical", &AlgorithmInfo::canonical);
  m.def("algorithms", algorithms, py::arg("collective"),
        "The rows of a collective, in order of preference.");
  m.def("algorithm_aliases", [] {
    py::dict names;
    for (const auto& [alias, name] : algorithm_aliases()) names[py::str(alias)] = name;
    return names;
  });
}

}  // namespace

void register_schedule(py::module_& m) {
  register_collectives(m);
  register_class(m);
  m.def("build", build, py::arg("collective"), py::arg("algorithm"), py::arg("world_size"),
        py::arg("root") = 0, "The schedule that an algorithm uses for a collective.");
  register_algorithms(m);
  m.def("hierarchical", hierarchical, py::arg("collective"), py::arg("node_of"), py::arg("between"),
        py::arg("rails"), py::arg("root") = 0,
        "The stages of a collective within nodes and between them, as one schedule.");
  m.def("stages_of", [](Collective collective) {
    py::list stages;
    for (const Stage& stage : stages_of(collective))
      stages.append(py::make_tuple(stage.scope == Scope::node ? "node" : "rail", stage.what));
    return stages;
  });
}

}  // namespace hier
