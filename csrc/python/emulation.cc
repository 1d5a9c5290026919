// Python face of csrc/emulation: Switch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "emulation/switch.h"
#include "python/register.h"
#include "python/without_gil.h"

namespace py = pybind11;

namespace hier {

namespace {

py::dict to_dict(const SwitchReport& report) {
  py::dict found;
  found["packets"] = report.packets;
  found["bytes"] = report.bytes;
  found["lost"] = report.lost;
  found["overflowed"] = report.overflowed;
  found["unknown"] = report.unknown;
  found["late_median"] = report.late_median;
  found["late_99"] = report.late_99;
  found["late_most"] = report.late_most;
  return found;
}

}  // namespace

void register_emulation(py::module_& m) {
  m.def(
      "run_switch",
      [](const std::vector<std::tuple<int, uint32_t, double>>& ports, double delay, double jitter,
         double loss, size_t queue_bytes, uint64_t seed, int stop) {
        std::vector<SwitchPort> owned;
        owned.reserve(ports.size());
        for (const auto& [tun, address, rate] : ports) owned.push_back({Fd(tun), address, rate});
        Switch it({delay, jitter, loss, queue_bytes, seed}, std::move(owned));
        {
          const WithoutGil released;
          it.run(stop);
        }
        return to_dict(it.report());
      },
      py::kw_only(), py::arg("ports"), py::arg("delay"), py::arg("jitter"), py::arg("loss"),
      py::arg("queue"), py::arg("seed"), py::arg("stop"),
      "Passes packets between TUN devices until the descriptor `stop` is readable or hung up; what "
      "it did. ports: (descriptor, which it closes; IPv4 address in network order; bytes per "
      "second in each direction). queue: bytes. Times in seconds.");
}

}  // namespace hier
