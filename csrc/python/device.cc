// Python face of device runtimes, and of DLPack capsules of device memory.
#include "device/runtime.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/error.h"
#include "device/cpu_runtime.h"
#include "device/host_staging.h"
#include "device/latency.h"
#include "device/nccl_stage.h"
#include "device/peers.h"
#include "device/shared_memory.h"
#include "python/dlpack.h"
#include "python/register.h"

namespace py = pybind11;

namespace hier {

namespace {

py::dict describe(const dlpack::Tensor& tensor, bool read_only) {
  py::list shape, strides;
  for (int i = 0; i < tensor.ndim; ++i) {
    shape.append(tensor.shape[i]);
    if (tensor.strides) strides.append(tensor.strides[i]);
  }
  py::dict found;
  found["address"] = reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset;
  found["device"] = py::make_tuple(tensor.device_type, tensor.device_id);
  found["dtype"] = py::make_tuple(tensor.type_code, tensor.type_bits, tensor.type_lanes);
  found["shape"] = py::tuple(shape);
  found["strides"] = tensor.strides ? py::object(py::tuple(strides)) : py::object(py::none());
  found["read_only"] = read_only;
  return found;
}

// The capsule stays unconsumed: its own destructor frees it when the caller drops it.
py::dict read_dlpack(const py::capsule& capsule) {
  const std::string name = capsule.name();
  if (name == "dltensor") {
    return describe(capsule.get_pointer<dlpack::Managed>()->tensor, false);
  }
  if (name == "dltensor_versioned") {
    const auto* managed = capsule.get_pointer<dlpack::ManagedVersioned>();
    if (managed->major != 1) {
      throw UsageError("the array speaks DLPack " + std::to_string(managed->major) +
                       ", and this version knows 0 and 1");
    }
    return describe(managed->tensor, (managed->flags & dlpack::kReadOnly) != 0);
  }
  throw UsageError("the capsule holds no DLPack tensor that is unused, but \"" + name + "\"");
}

DeviceRuntime::Stream stream_at(uintptr_t address) {
  return reinterpret_cast<DeviceRuntime::Stream>(address);
}

// An object whose end may wait for other ranks, which may be threads that need the GIL.
template <class Object, class... Arguments>
std::shared_ptr<Object> make_waiting(Arguments&&... arguments) {
  return {new Object(std::forward<Arguments>(arguments)...), [](Object* object) {
            if (PyGILState_Check()) {
              const py::gil_scoped_release release;
              delete object;
            } else {
              delete object;
            }
          }};
}

std::shared_ptr<MappedPeerStage> make_peers(DeviceRuntime& runtime, int device, int local_size,
                                            int local_rank, uintptr_t counters) {
  return make_waiting<MappedPeerStage>(PeersConfig{&runtime, device, local_size, local_rank,
                                                   reinterpret_cast<std::byte*>(counters)});
}

std::shared_ptr<NcclStage> make_nccl(const nccl::Library& library, DeviceRuntime& runtime,
                                     int device, int local_size, int local_rank,
                                     const std::string& unique_id, double timeout) {
  NcclStageConfig config{&runtime, device, local_size, local_rank, {}, timeout};
  if (unique_id.size() != sizeof config.id) throw UsageError("unique_id: must be one of NCCL's");
  std::memcpy(&config.id, unique_id.data(), unique_id.size());
  // Here and not by a call guard, which would have pybind11 register the new object without the
  // lock as well.
  const py::gil_scoped_release release;
  return make_waiting<NcclStage>(library, config);
}

// Peers: MappedPeerStage or SharedDeviceMemory.
template <class Peers>
py::bytes handle_of(const Peers& peers) {
  return {reinterpret_cast<const char*>(peers.handle().data()), peers.handle().size()};
}

template <class Peers>
void open_handles(Peers& peers, const std::vector<std::string>& handles) {
  std::vector<DeviceRuntime::SharedHandle> all(handles.size());
  for (size_t i = 0; i < handles.size(); ++i) {
    std::memcpy(all[i].data(), handles[i].data(), std::min(all[i].size(), handles[i].size()));
  }
  peers.open(all);
}

void synchronize(DeviceRuntime& runtime, int device, uintptr_t stream) {
  const DeviceRuntime::Event event = runtime.create_event(device);
  runtime.record(event, stream_at(stream));
  runtime.synchronize(event);
  runtime.destroy_event(event);
}

Chain parse_chain(const std::string& name) {
  if (name == "query") return Chain::query;
  if (name == "event") return Chain::event;
  if (name == "write_flag") return Chain::write_flag;
  if (name == "wait_flag") return Chain::wait_flag;
  throw UsageError("chain must be query, event, write_flag or wait_flag, not " + name);
}

std::vector<double> latency(DeviceRuntime& runtime, int device, const std::string& chain,
                            int rounds) {
  return measure_latency(runtime, device, parse_chain(chain), rounds);
}

void register_local_stages(py::module_& m) {
  py::class_<DeviceLocalStage, std::shared_ptr<DeviceLocalStage>>(m, "DeviceLocalStage")
      .def("abandon", &DeviceLocalStage::abandon, py::call_guard<py::gil_scoped_release>());
  py::class_<NcclStage, DeviceLocalStage, std::shared_ptr<NcclStage>>(m, "NcclStage")
      .def(py::init(&make_nccl), py::kw_only(), py::arg("library"), py::arg("runtime"),
           py::arg("device"), py::arg("local_size"), py::arg("local_rank"), py::arg("unique_id"),
           py::arg("timeout"));
  py::class_<MappedPeerStage, DeviceLocalStage, std::shared_ptr<MappedPeerStage>>(m,
                                                                                  "MappedPeerStage")
      .def(py::init(&make_peers), py::kw_only(), py::arg("runtime"), py::arg("device"),
           py::arg("local_size"), py::arg("local_rank"), py::arg("counters"))
      .def_property_readonly("handle", &handle_of<MappedPeerStage>)
      .def_static("counter_bytes", &MappedPeerStage::counter_bytes)
      .def("open", &open_handles<MappedPeerStage>);
  py::class_<SharedDeviceMemory, std::shared_ptr<SharedDeviceMemory>>(m, "SharedDeviceMemory")
      .def(py::init([](DeviceRuntime& runtime, int device, int local_size, int local_rank,
                       size_t nbytes, const py::buffer& importer) {
             auto* own = static_cast<MappedMemory::Importer*>(importer.request(true).ptr);
             return make_waiting<SharedDeviceMemory>(runtime, device, local_size, local_rank,
                                                     nbytes, own - local_rank);
           }),
           py::kw_only(), py::arg("runtime"), py::arg("device"), py::arg("local_size"),
           py::arg("local_rank"), py::arg("nbytes"), py::arg("importer"), py::keep_alive<1, 7>())
      .def_static("importer_bytes", [] { return sizeof(MappedMemory::Importer); })
      .def_property_readonly("handle", &handle_of<SharedDeviceMemory>)
      .def("open", &open_handles<SharedDeviceMemory>)
      .def("address", [](const SharedDeviceMemory& self, int local_rank) {
        return reinterpret_cast<uintptr_t>(self.of(local_rank));
      });
}

void register_cpu_runtime(py::module_& m) {
  m.def(
      "cpu_device_runtime",
      [](bool callbacks) -> DeviceRuntime& {
        static CpuRuntime with_atomics(CpuRuntime::Flags::atomics);
        static CpuRuntime with_callbacks(CpuRuntime::Flags::callbacks);
        return callbacks ? with_callbacks : with_atomics;
      },
      py::arg("callbacks") = false, py::return_value_policy::reference);
  m.def(
      "cpu_device_runtime_of_broken_flags",
      [](bool refused) -> DeviceRuntime* {
        return new CpuRuntime(refused ? CpuRuntime::Flags::refused : CpuRuntime::Flags::lost);
      },
      "For tests: never destroyed.", py::kw_only(), py::arg("refused"),
      py::return_value_policy::reference);
  m.def("cpu_num_enqueued", &CpuRuntime::num_enqueued);
  m.def("cpu_shared_counts", [] {
    const auto [owned, freed_while_mapped] = CpuRuntime::shared_counts();
    return std::pair(owned, freed_while_mapped);
  });
}

}  // namespace

void register_device(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<DeviceRuntime, std::unique_ptr<DeviceRuntime, py::nodelete>>(m, "DeviceRuntime")
      .def_property_readonly("name", &DeviceRuntime::name)
      .def_property_readonly("chaining", &DeviceRuntime::chaining)
      .def("has_context", &DeviceRuntime::has_context)
      .def("capsule", [](DeviceRuntime& self) { return py::capsule(&self, "hier::DeviceRuntime"); })
      .def("device_of",
           [](DeviceRuntime& self, uintptr_t address) {
             return self.device_of(reinterpret_cast<const void*>(address));
           })
      .def("create_stream",
           [](DeviceRuntime& self, int device) {
             return reinterpret_cast<uintptr_t>(self.create_stream(device));
           })
      .def("destroy_stream",
           [](DeviceRuntime& self, uintptr_t stream) { self.destroy_stream(stream_at(stream)); })
      .def("allocate_pinned",
           [](DeviceRuntime& self, size_t bytes) {
             return reinterpret_cast<uintptr_t>(self.allocate_pinned(bytes));
           })
      .def("free_pinned",
           [](DeviceRuntime& self, uintptr_t address) {
             self.free_pinned(reinterpret_cast<std::byte*>(address));
           })
      .def("allocate",
           [](DeviceRuntime& self, int device, size_t bytes) {
             return reinterpret_cast<uintptr_t>(self.allocate(device, bytes));
           })
      .def("free", [](DeviceRuntime& self,
                      uintptr_t address) { self.free(reinterpret_cast<std::byte*>(address)); })
      .def("latency", &latency, py::arg("device"), py::arg("chain"), py::arg("rounds"), nogil())
      .def("copy",
           [](DeviceRuntime& self, uintptr_t to, uintptr_t from, size_t bytes, uintptr_t stream) {
             self.copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes,
                       stream_at(stream));
           })
      .def("wait_flag",
           [](DeviceRuntime& self, uintptr_t flag, uint32_t value, uintptr_t stream) {
             self.wait_flag(reinterpret_cast<DeviceRuntime::Flag*>(flag), value, stream_at(stream));
           })
      .def("synchronize", &synchronize, py::arg("device"), py::arg("stream"), nogil());
  register_local_stages(m);
  py::class_<DevicePlace>(m, "DevicePlace")
      .def(py::init([](DeviceRuntime& runtime, int device, uintptr_t caller, uintptr_t in,
                       uintptr_t out) {
             return DevicePlace{&runtime, device, stream_at(caller), stream_at(in), stream_at(out)};
           }),
           py::kw_only(), py::arg("runtime"), py::arg("device"), py::arg("caller"), py::arg("in_"),
           py::arg("out"));
  register_cpu_runtime(m);
  m.def("read_dlpack", &read_dlpack);
}

}  // namespace hier
