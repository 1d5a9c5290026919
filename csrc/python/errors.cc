// Raises the core's errors as the classes of allreduce.errors.
#include <sys/syscall.h>
#include <unistd.h>

#include <string_view>

#include "base/error.h"
#include "group/work.h"
#include "python/register.h"

namespace py = pybind11;

namespace hier {

namespace {

// A text of a peer or of the system may be no UTF-8: that must not hide the error.
py::object text_of(const std::exception& error) {
  const std::string_view text = error.what();
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
}

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
    raise("UsageError", text_of(e));
  } catch (const PeerError& e) {
    raise("PeerError", text_of(e), e.rank);
  } catch (const Timeout& e) {
    raise("Timeout", text_of(e));
  } catch (const MismatchError& e) {
    raise("MismatchError", text_of(e));
  } catch (const IntegrityError& e) {
    raise("IntegrityError", text_of(e));
  } catch (const SystemError& e) {
    raise("SystemCallError", e.error_number, text_of(e));
  } catch (const CudaError& e) {
    raise("CudaError", text_of(e));
  } catch (const AbortedError& e) {
    raise("AbortedError", text_of(e));
  }
}

// Ctrl-C works inside a collective: Python's signal handlers run while a caller waits. They run in
// the main thread alone; any other must not ask for the lock here, for the interpreter may be gone.
void raise_signals() {
  if (::syscall(SYS_gettid) != ::getpid()) return;  // no gettid() before glibc 2.30
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void register_errors(py::module_& m) {
  py::register_exception_translator(&translate);
  set_interrupt_check(&raise_signals);
  m.def("set_exiting", &set_exiting);
}

}  // namespace hier
