// Channels and the engine for tests: any channel kind, any schedule, one thread per rank.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "engine/engine.h"
#include "python/register.h"
#include "transport/inproc.h"
#include "transport/shm.h"
#include "transport/tcp.h"

namespace py = pybind11;

namespace hier {

namespace {

using ChannelPair = std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>>;

ChannelPair inproc_pair(double delay, size_t max_transfer, size_t cut_after, size_t capacity) {
  return InprocChannel::pair({delay, max_transfer, cut_after, capacity});
}

ChannelPair socket_pair(bool checked) {
  int fds[2];
  check_errno(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds),
              "socketpair");
  return {std::make_unique<TcpChannel>(Fd(fds[0]), checked),
          std::make_unique<TcpChannel>(Fd(fds[1]), checked)};
}

// Takes connected, nonblocking sockets.
ChannelPair tcp_pair(int first, int second, bool checked) {
  return {std::make_unique<TcpChannel>(Fd(first), checked),
          std::make_unique<TcpChannel>(Fd(second), checked)};
}

// A channel over a ring that it owns together with its twin.
class OwningShmChannel final : public Channel {
 public:
  struct Memory {
    ShmRing rings[2]{};
    std::vector<std::byte> bytes[2];
  };
  OwningShmChannel(std::shared_ptr<Memory> memory, int side)
      : memory_(std::move(memory)), channel_(view(side), view(1 - side), nullptr, 1 - side) {}
  size_t try_write(std::span<const Bytes> parts) override {
    const size_t n = channel_.try_write(parts);
    bytes_sent = channel_.bytes_sent;
    return n;
  }
  size_t try_read(std::span<std::byte> dst) override { return channel_.try_read(dst); }
  Bytes peek(size_t wanted) override { return channel_.peek(wanted); }
  void consume(size_t n) override { channel_.consume(n); }
  int fd() const override { return -1; }
  bool over_network() const override { return false; }

 private:
  ShmRingView view(int side) {
    return {&memory_->rings[side], memory_->bytes[side].data(), memory_->bytes[side].size()};
  }
  std::shared_ptr<Memory> memory_;
  ShmChannel channel_;
};

ChannelPair shm_pair(size_t capacity) {
  if (capacity < 64 || capacity % 8 != 0) throw UsageError("capacity: a multiple of 8, from 64");
  auto memory = std::make_shared<OwningShmChannel::Memory>();
  for (auto& bytes : memory->bytes) bytes.resize(capacity);
  return {std::make_unique<OwningShmChannel>(memory, 0),
          std::make_unique<OwningShmChannel>(memory, 1)};
}

// Runs this rank's program over the channels until it ends; polls without sleeping.
void run_program(const std::map<int, Channel*>& channels, const Program& program, uintptr_t address,
                 const std::string& dtype, const std::string& op, std::optional<RunHeader> header,
                 double timeout) {
  const DType type = parse_dtype(dtype);
  std::vector<Channel*> by_rank;
  for (const auto& [rank, channel] : channels) {
    by_rank.resize(std::max(by_rank.size(), static_cast<size_t>(rank) + 1));
    by_rank[rank] = channel;
  }
  Engine engine(std::move(by_rank));
  const ReduceFn reduce = reduce_fn(type, parse_op(op));
  const auto deadline = after(timeout);
  const py::gil_scoped_release nogil;
  engine.submit({std::make_shared<Program>(program), reinterpret_cast<std::byte*>(address),
                 size_of(type), reduce, header ? &*header : nullptr, header.has_value()});
  while (!engine.idle()) {
    if (engine.progress()) continue;
    if (Clock::now() > deadline) throw Timeout("waiting for " + engine.describe_wait());
    ::sched_yield();
  }
}

void register_channel(py::module_& m) {
  py::class_<Channel>(m, "Channel")
      .def("try_write",
           [](Channel& self, const py::bytes& data) {
             const std::string_view view(data);
             const Bytes part = std::as_bytes(std::span(view.data(), view.size()));
             return self.try_write({&part, 1});
           })
      .def("try_read",
           [](Channel& self, size_t n) {
             std::string buffer(n, '\0');
             buffer.resize(self.try_read(std::as_writable_bytes(std::span(buffer))));
             return py::bytes(buffer);
           })
      .def("peek",
           [](Channel& self, size_t wanted) {
             const Bytes ready = self.peek(wanted);
             return py::bytes(reinterpret_cast<const char*>(ready.data()), ready.size());
           })
      .def("peek_address",
           [](Channel& self, size_t wanted) {
             return reinterpret_cast<uintptr_t>(self.peek(wanted).data());
           })
      .def("consume", &Channel::consume)
      .def_property_readonly("over_network", &Channel::over_network)
      .def_readonly("bytes_sent", &Channel::bytes_sent);
}

}  // namespace

void register_transport(py::module_& m) {
  auto testing = m.def_submodule("testing", "Channels and the engine without a group.");
  py::register_exception<ChannelBroken>(testing, "ChannelBroken");
  register_channel(testing);
  testing.def(
      "crc32c",
      [](const py::bytes& data, uint32_t crc) {
        const std::string_view view(data);
        py::dict found;
        for (const Crc32c& kind : available_crc32c()) {
          const auto* at = reinterpret_cast<const std::byte*>(view.data());
          found[kind.name] = ~kind.update(~crc, at, view.size());
        }
        return found;
      },
      py::arg("data"), py::arg("crc") = 0);
  testing.def("inproc_pair", &inproc_pair, py::arg("delay") = 0.0,
              py::arg("max_transfer") = SIZE_MAX, py::arg("cut_after") = SIZE_MAX,
              py::arg("capacity") = size_t{1} << 20);
  testing.def("socket_pair", &socket_pair, py::arg("checked") = true);
  testing.def("tcp_pair", &tcp_pair, py::arg("first"), py::arg("second"),
              py::arg("checked") = true);
  testing.def("shm_pair", &shm_pair, py::arg("capacity") = size_t{64} << 10);
  py::class_<RunHeader>(testing, "RunHeader")
      .def(py::init([](Collective collective, const std::string& dtype, const std::string& op,
                       uint64_t count, int rank, const std::string& algorithm, uint32_t run) {
             RunHeader header;
             header.collective = collective;
             header.dtype = parse_dtype(dtype);
             header.op = parse_op(op);
             header.count = count;
             header.source = static_cast<uint16_t>(rank);
             header.run = run;
             header.set_algorithm(algorithm);
             return header;
           }),
           py::arg("collective"), py::arg("dtype"), py::arg("op"), py::arg("count"),
           py::arg("rank"), py::arg("algorithm") = "", py::arg("run") = 0)
      .def(
          "disagreement",
          [](const RunHeader& mine, const RunHeader& theirs, std::optional<int> from) {
            return disagreement(mine, theirs, from.value_or(theirs.source));
          },
          py::arg("theirs"), py::arg("from_rank") = std::nullopt)
      .def("flip",
           [](RunHeader& header, size_t bit) {
             const auto bytes = std::as_writable_bytes(std::span(&header, 1));
             bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
           })
      .def("__str__", [](const RunHeader& header) { return describe(header); });
  testing.def("run_program", &run_program, py::arg("channels"), py::arg("program"),
              py::arg("address"), py::arg("dtype"), py::arg("op") = "sum",
              py::arg("header") = std::nullopt, py::arg("timeout") = 30.0);
}

}  // namespace hier
