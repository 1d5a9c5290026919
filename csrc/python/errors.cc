// Raises the core's errors as the classes of allreduce.errors.
#include "base/error.h"
#include "group/work.h"
#include "python/register.h"

namespace py = pybind11;

namespace hier {

namespace {

template <class... Args>
void raise(const char* name, Args&&... args) {
  const py::object type = py::module_::import("allreduce.errors").attr(name);
  const py::object error = type(std::forward<Args>(args)...);
  PyErr_SetObject(type.ptr(), error.ptr());
}

void translate(std::exception_ptr pointer) {
  if (!pointer) return;
  try {
    std::rethrow_exception(pointer);
  } catch (const UsageError& e) {
    raise("UsageError", e.what());
  } catch (const PeerError& e) {
    raise("PeerError", e.what(), e.rank);
  } catch (const Timeout& e) {
    raise("Timeout", e.what());
  } catch (const MismatchError& e) {
    raise("MismatchError", e.what());
  } catch (const SystemError& e) {
    raise("SystemCallError", e.error_number, e.what());
  } catch (const CudaError& e) {
    raise("CudaError", e.what());
  } catch (const AbortedError& e) {
    raise("AbortedError", e.what());
  }
}

// Ctrl-C works inside a collective: Python's signal handlers run while a caller waits.
void raise_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void register_errors(py::module_&) {
  py::register_exception_translator(&translate);
  set_interrupt_check(&raise_signals);
}

}  // namespace hier
