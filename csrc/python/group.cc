// Python face of groups: addresses and counts in, errors and works out. allreduce/communicator/
// turns arrays into addresses.
#include "group/group.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>

#include "base/clock.h"
#include "base/error.h"
#include "python/register.h"
#include "python/without_gil.h"

namespace py = pybind11;

namespace hier {

namespace {

using Descriptors = std::map<int, int>;                   // rank -> descriptor
using LaneDescriptors = std::map<int, std::vector<int>>;  // rank -> one descriptor per lane

Connections take(const GroupConfig& config, const Descriptors& control, const LaneDescriptors& data,
                 int connector, int arena, const std::vector<int>& doorbells) {
  const size_t world_size = config.node_of_rank.size();
  Connections connections;
  connections.control.resize(world_size);
  connections.data.resize(static_cast<size_t>(config.lanes) + 1);  // the last for messages
  for (auto& lane : connections.data) lane.resize(world_size);
  for (const auto& [rank, fd] : control) connections.control.at(rank) = Fd(fd);
  for (const auto& [rank, fds] : data) {
    for (size_t lane = 0; lane < fds.size(); ++lane) {
      connections.data.at(lane).at(rank) = Fd(fds[lane]);
    }
  }
  connections.connector = Fd(connector);
  connections.arena = Fd(arena);
  for (int fd : doorbells) connections.doorbells.emplace_back(fd);
  return connections;
}

Call make_call(Collective collective, uintptr_t address, size_t count, const std::string& dtype,
               const std::string& op, int root, const std::string& algorithm, double timeout,
               uint32_t name_hash, std::vector<size_t> bounds, uintptr_t input, size_t input_count,
               std::vector<size_t> input_bounds, std::optional<DevicePlace> device,
               const std::optional<std::vector<int64_t>>& shape) {
  Call call;
  call.collective = collective;
  call.data = reinterpret_cast<void*>(address);
  call.count = count;
  call.dtype = parse_dtype(dtype);
  call.op = parse_op(op);
  call.root = root;
  call.algorithm = algorithm;
  call.timeout = timeout;
  call.name_hash = name_hash;
  call.bounds = std::move(bounds);
  call.input = reinterpret_cast<const void*>(input);
  call.input_count = input_count;
  call.input_bounds = std::move(input_bounds);
  call.device = device;
  if (shape) call.shape = shape_hash(*shape);
  return call;
}

// What NumPy calls a dtype, where the core has it, in this machine's byte order.
std::optional<DType> dtype_of(const py::dtype& dtype) {
  if (dtype.byteorder() != '=' && dtype.byteorder() != '|') return std::nullopt;
  switch (dtype.kind() << 8 | static_cast<int>(dtype.itemsize())) {
    case 'f' << 8 | 8:
      return DType::f64;
    case 'f' << 8 | 4:
      return DType::f32;
    case 'f' << 8 | 2:
      return DType::f16;
    case 'i' << 8 | 8:
      return DType::i64;
    case 'i' << 8 | 4:
      return DType::i32;
    case 'i' << 8 | 2:
      return DType::i16;
    case 'i' << 8 | 1:
      return DType::i8;
    case 'u' << 8 | 1:
      return DType::u8;
    case 'b' << 8 | 1:
      return DType::boolean;
    default:
      return std::nullopt;
  }
}

// An allreduce of a NumPy array as it should be; none for all else, whatever is wrong with it.
std::optional<Call> allreduce_of(const py::handle& x, const std::string& op,
                                 const std::string& algorithm, double timeout) {
  if (!py::isinstance<py::array>(x)) return std::nullopt;
  auto array = py::reinterpret_borrow<py::array>(x);
  constexpr int kReady = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ |
                         py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                         py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  const auto dtype = dtype_of(array.dtype());
  if (!dtype || (array.flags() & kReady) != kReady) return std::nullopt;
  Call call;
  call.data = array.mutable_data();
  call.count = static_cast<size_t>(array.size());
  call.shape = shape_hash({array.shape(), static_cast<size_t>(array.ndim())});
  call.dtype = *dtype;
  call.op = parse_op(op);
  call.algorithm = algorithm;
  call.timeout = timeout;
  return call;
}

// The usual case: to look at an array in Python takes several times longer than a small allreduce.
// False: the array is another case.
bool allreduce(Group& self, const py::handle& x, const std::string& op,
               const std::string& algorithm, double timeout) {
  auto call = allreduce_of(x, op, algorithm, timeout);
  if (!call) return false;
  const WithoutGil nogil;
  self.run(std::move(*call));
  return true;
}

// Seconds of each of some calls, one after the other without an interpreter between them.
std::vector<double> time_allreduce(Group& self, const py::handle& x, const std::string& op,
                                   const std::string& algorithm, size_t calls) {
  const auto call = allreduce_of(x, op, algorithm, -1);
  if (!call) throw UsageError("time_allreduce takes a contiguous, writable NumPy array");
  const WithoutGil nogil;
  std::vector<double> seconds;
  seconds.reserve(calls);
  for (size_t i = 0; i < calls; ++i) {
    const auto begin = Clock::now();
    self.run(*call);
    seconds.push_back(Seconds(Clock::now() - begin).count());
  }
  return seconds;
}

void register_work(py::module_& m) {
  py::class_<Work, std::shared_ptr<Work>>(m, "Work")
      .def("done",
           [](const Work& self) {
             self.check_member();
             return self.done() && (!self.device() || self.error() || self.device()->finished());
           })
      .def_property_readonly("source", &Work::source)
      .def_property_readonly("tag", &Work::tag);
}

void register_symmetric(py::module_& m) {
  py::class_<SharedMapping, std::shared_ptr<SharedMapping>>(m, "SharedMapping")
      .def_property_readonly("size", &SharedMapping::size);
}

using GroupClass = py::class_<Group, std::shared_ptr<Group>>;

template <auto Method>
auto call(Group& self, Collective collective, uintptr_t address, size_t count,
          const std::string& dtype, const std::string& op, int root, const std::string& algorithm,
          double timeout, uint32_t name_hash, std::vector<size_t> bounds, uintptr_t input,
          size_t input_count, std::vector<size_t> input_bounds, std::optional<DevicePlace> device,
          const std::optional<std::vector<int64_t>>& shape) {
  Call made =
      make_call(collective, address, count, dtype, op, root, algorithm, timeout, name_hash,
                std::move(bounds), input, input_count, std::move(input_bounds), device, shape);
  const WithoutGil nogil;
  return Method(self, std::move(made));
}

std::shared_ptr<Work> transfer(Group& self, bool send, int peer, int tag, uintptr_t address,
                               size_t count, const std::string& dtype, double timeout, bool wait) {
  const Message message{
      send, peer, tag, reinterpret_cast<void*>(address), count, parse_dtype(dtype), timeout};
  const WithoutGil nogil;
  return wait ? self.run(message) : self.start(message);
}

void define_calls(GroupClass& group) {
  const auto define = [&](const char* name, auto method) {
    group.def(name, method, py::arg("collective"), py::arg("address"), py::arg("count"),
              py::arg("dtype"), py::arg("op") = "sum", py::arg("root") = 0,
              py::arg("algorithm") = "auto", py::arg("timeout") = -1.0, py::arg("name_hash") = 0,
              py::arg("bounds") = std::vector<size_t>(), py::arg("input") = 0,
              py::arg("input_count") = 0, py::arg("input_bounds") = std::vector<size_t>(),
              py::arg("device") = std::optional<DevicePlace>(),
              py::arg("shape") = std::optional<std::vector<int64_t>>());
  };
  define("run", &call<[](Group& self, Call call) { self.run(std::move(call)); }>);
  define("start", &call<[](Group& self, Call call) { return self.start(std::move(call)); }>);
  group.def("allreduce", &allreduce, py::arg("array"), py::arg("op"), py::arg("algorithm"),
            py::arg("timeout"));
  group.def("time_allreduce", &time_allreduce, py::arg("array"), py::arg("op"),
            py::arg("algorithm"), py::arg("calls"));
  group.def("transfer", &transfer, py::kw_only(), py::arg("send"), py::arg("peer"), py::arg("tag"),
            py::arg("address"), py::arg("count"), py::arg("dtype"), py::arg("timeout"),
            py::arg("wait"));
}

void define_init(GroupClass& group) {
  group.def(py::init([](int rank, std::vector<int> node_of_rank, uint32_t group_id,
                        uint16_t generation, int lanes, double timeout, bool hierarchical,
                        int rails, size_t segment_bytes, int ranks_on_host, bool checksum,
                        double dead_after, bool one_host, std::vector<std::string> hosts,
                        const Descriptors& control, const LaneDescriptors& data, int connector,
                        int arena, const std::vector<int>& doorbells) {
              GroupConfig config;
              config.rank = rank;
              config.node_of_rank = std::move(node_of_rank);
              config.group_id = group_id;
              config.generation = generation;
              config.lanes = lanes;
              config.timeout = timeout;
              config.hierarchical = hierarchical;
              config.rails = rails;
              config.segment_bytes = segment_bytes;
              config.ranks_on_host = ranks_on_host;
              config.checksum = checksum;
              config.dead_after = dead_after;
              config.one_host = one_host;
              config.hosts = std::move(hosts);
              Connections connections = take(config, control, data, connector, arena, doorbells);
              return make_group(std::move(config), std::move(connections));
            }),
            py::kw_only(), py::arg("rank"), py::arg("node_of_rank"), py::arg("group_id"),
            py::arg("generation"), py::arg("lanes"), py::arg("timeout"), py::arg("hierarchical"),
            py::arg("rails"), py::arg("segment_bytes"), py::arg("ranks_on_host"),
            py::arg("checksum"), py::arg("dead_after"), py::arg("one_host"), py::arg("hosts"),
            py::arg("control"), py::arg("data"), py::arg("connector"), py::arg("arena"),
            py::arg("doorbells"));
}

void define_planning(GroupClass& group) {
  group
      .def("choose", [](const Group& self, Collective collective,
                        size_t bytes) { return self.planner().choose(collective, bytes); })
      .def("set_choices",
           [](Group& self, const std::vector<std::tuple<Collective, size_t, std::string>>& rows) {
             std::vector<Choice> choices;
             for (const auto& [collective, bytes, name] : rows) {
               choices.push_back({collective, bytes, name});
             }
             self.planner().set_choices(std::move(choices));
           })
      .def(
          "add_schedule",
          [](const Group& self, const std::string& name, Collective collective, Schedule schedule,
             int root) {
            self.planner().add_schedule(name, collective, std::move(schedule), root);
          },
          py::arg("name"), py::arg("collective"), py::arg("schedule"), py::arg("root") = 0,
          py::call_guard<WithoutGil>())
      .def("add_symmetric",
           [](Group& self, int fd, size_t bytes) {
             auto mapping = self.add_symmetric(fd, bytes);
             const size_t offset = bytes * static_cast<size_t>(self.topology().local_rank);
             return std::pair(mapping, reinterpret_cast<uintptr_t>(mapping->data() + offset));
           })
      .def_property_readonly("known_symmetric",
                             [](const Group& self) { return self.planner().symmetric().size(); });
}

void define_connecting(GroupClass& group) {
  group.def("take_requests", &Group::take_requests)
      .def("pass_on", &Group::pass_on, py::call_guard<WithoutGil>())
      .def("gone_ranks", &Group::gone_ranks, py::call_guard<WithoutGil>())
      .def(
          "connect",
          [](Group& self, int rank, const std::vector<int>& descriptors) {
            std::vector<Fd> sockets;
            for (const int fd : descriptors) sockets.emplace_back(fd);
            self.connect(rank, std::move(sockets));
          },
          py::call_guard<WithoutGil>())
      .def("give_up", &Group::give_up, py::arg("rank"), py::arg("reason"), py::arg("unanswered"),
           py::arg("closed"), py::call_guard<WithoutGil>());
}

void define_device_calls(GroupClass& group) {
  group
      .def("set_device_local_stage",
           [](const Group& self, std::shared_ptr<DeviceLocalStage> stage) {
             self.device_calls().set_stage(std::move(stage));
           })
      .def(
          "raise_on_failure",
          [](const Group& self, const std::shared_ptr<SharedDeviceMemory>& memory, size_t offset) {
            self.device_calls().raise_on_failure(memory, offset);
          },
          py::arg("memory"), py::arg("offset"))
      .def_property_readonly(
          "host_path_bytes",
          [](const Group& self) { return self.device_calls().host_path_bytes(); })
      .def("set_host_path_bytes",
           [](const Group& self, size_t bytes) { self.device_calls().set_host_path_bytes(bytes); });
}

}  // namespace

void register_group(py::module_& m) {
  register_work(m);
  register_symmetric(m);
  m.def("arena_bytes",
        [](int local_size, int lanes) { return ArenaLayout::plan(local_size, lanes).bytes(); });

  GroupClass group(m, "Group");
  define_init(group);
  define_calls(group);
  define_planning(group);
  define_connecting(group);
  define_device_calls(group);
  group.def("wait", &Group::wait, py::arg("work"), py::arg("timeout"), py::call_guard<WithoutGil>())
      .def(
          "settle",
          [](Group& self, uintptr_t address, size_t bytes) {
            self.settle(
                std::array{ByteRange::of(reinterpret_cast<const void*>(address), bytes, true)});
          },
          py::call_guard<WithoutGil>())
      .def("set_timeout", &Group::set_timeout)
      .def_property_readonly("timeout", &Group::timeout)
      .def_property_readonly("inherited", &Group::inherited)
      .def("traffic",
           [](const Group& self) {
             const Traffic t = self.traffic();
             return std::pair(t.shared_memory_bytes, t.network_bytes);
           })
      .def("abort", &Group::abort, py::call_guard<WithoutGil>())
      .def("close", &Group::close, py::call_guard<WithoutGil>())
      .def("take_error_at_close", &Group::take_error_at_close)
      .def("capsule", [](const std::shared_ptr<Group>& self) {
        return py::capsule(new std::shared_ptr<Group>(self), "hier::Group", [](void* pointer) {
          delete static_cast<std::shared_ptr<Group>*>(pointer);
        });
      });
}

}  // namespace hier
