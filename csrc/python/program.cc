// Python face of csrc/program and csrc/analysis: lower() and the simulator, results as arrays.
#include "program/program.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "analysis/simulate.h"

namespace py = pybind11;

namespace hier {
namespace {

template <class T>
py::array_t<T> to_array(const std::vector<T>& values, size_t count) {
  return py::array_t<T>(static_cast<py::ssize_t>(count), values.data());
}
template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return to_array(values, values.size());
}

std::vector<size_t> bounds_of(const Schedule& schedule, const py::object& count_or_bounds) {
  if (py::isinstance<py::int_>(count_or_bounds))
    return even_bounds(count_or_bounds.cast<size_t>(), schedule.num_chunks);
  return count_or_bounds.cast<std::vector<size_t>>();
}

Program lower_python(const Schedule& schedule, int rank, const py::object& bounds, size_t segment) {
  return lower(schedule, rank, bounds_of(schedule, bounds), segment);
}

Simulation simulate_python(const Schedule& schedule, const py::object& bounds, size_t element_size,
                           size_t segment, const Network& network) {
  const std::vector<size_t> elements = bounds_of(schedule, bounds);
  const py::gil_scoped_release release;
  return simulate(schedule, elements, element_size, segment, network);
}

py::list queues_of(const Program& program) {
  py::list queues;
  for (const Queue& queue : program.queues) {
    const std::vector<uint32_t> ids(program.order.begin() + queue.first,
                                    program.order.begin() + queue.first + queue.count);
    queues.append(py::make_tuple(queue.peer, queue.send, to_array(ids)));
  }
  return queues;
}

void register_simulation(py::module_& m) {
  py::class_<Link>(m, "Link", "alpha (s), beta (s/byte), overhead (s a message) of a link.")
      .def(py::init([](double alpha, double beta, double overhead) {
             return Link{alpha, beta, overhead};
           }),
           py::arg("alpha"), py::arg("beta"), py::arg("overhead") = 0.0)
      .def_readonly("alpha", &Link::alpha)
      .def_readonly("beta", &Link::beta)
      .def_readonly("overhead", &Link::overhead);
  py::class_<Network>(m, "Network", "Which node each rank is on, and the links' figures.")
      .def(py::init([](std::vector<int> node_of, Link local, Link inter, double gamma) {
             return Network{std::move(node_of), local, inter, gamma};
           }),
           py::arg("node_of"), py::arg("local"), py::arg("inter"), py::arg("gamma") = 0.0);
  const auto column = [](std::vector<double> Simulation::* member) {
    return [member](const Simulation& s) { return to_array(s.*member); };
  };
  py::class_<Simulation>(m, "Simulation", "What simulate() found; all times in seconds.")
      .def_readonly("seconds", &Simulation::seconds)
      .def_property_readonly("rank_reducing", column(&Simulation::rank_reducing))
      .def_property_readonly("local_out_busy", column(&Simulation::local_out_busy))
      .def_property_readonly("local_in_busy", column(&Simulation::local_in_busy))
      .def_property_readonly("nic_out_busy", column(&Simulation::nic_out_busy))
      .def_property_readonly("nic_in_busy", column(&Simulation::nic_in_busy))
      .def_property_readonly("timeline", [](const Simulation& s) { return to_array(s.timeline); });
  m.def("simulate", simulate_python, py::arg("schedule"), py::arg("bounds"),
        py::arg("element_size"), py::arg("segment"), py::arg("network"),
        "Simulates all ranks' programs; bounds as in lower(), segment in elements.");
}

}  // namespace

void register_program(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(Step, kind, peer, offset, count, waits, first_next, round, chunk);
  PYBIND11_NUMPY_DTYPE(TimelineEntry, rank, step, kind, peer, round, chunk, bytes, start, end);
  py::class_<Program>(m, "Program", "The steps of one rank; see csrc/program/program.h.")
      .def_property_readonly(
          "steps", [](const Program& p) { return to_array(p.steps, p.num_steps()); },
          "Structured array: kind (0 send, 1 recv_copy, 2 recv_reduce), peer, offset, count, ...")
      .def_property_readonly(
          "first_next",
          [](const Program& p) {
            std::vector<uint32_t> first;
            for (const Step& step : p.steps) first.push_back(step.first_next);
            return to_array(first);
          },
          "Step i's successors are next[first_next[i]:first_next[i + 1]].")
      .def_property_readonly("next", [](const Program& p) { return to_array(p.next); })
      .def_property_readonly("queues", queues_of,
                             "A (peer, is_send, step ids in wire order) for each queue.")
      .def("__len__", &Program::num_steps);
  m.def("even_bounds", even_bounds, py::arg("count"), py::arg("num_chunks"),
        "num_chunks + 1 element offsets; all but the last are multiples of 16.");
  m.def("lower", lower_python, py::arg("schedule"), py::arg("rank"), py::arg("bounds"),
        py::arg("segment"),
        "One rank's program. bounds: a count, split evenly, or num_chunks + 1 element offsets.");
  register_simulation(m);
}

}  // namespace hier
