// The core's errors as the classes of allreduce.errors, from any function that torch binds: its
// bindings and this module share pybind11's registry.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

#include "base/error.h"

namespace hier {

inline const char* class_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
      return "UsageError";
    case ErrorKind::peer:
      return "PeerError";
    case ErrorKind::timeout:
      return "Timeout";
    case ErrorKind::mismatch:
      return "MismatchError";
    case ErrorKind::system:
      return "SystemCallError";
    case ErrorKind::cuda:
      return "CudaError";
    case ErrorKind::aborted:
      return "AbortedError";
    case ErrorKind::integrity:
      return "IntegrityError";
  }
  return "Error";
}

inline pybind11::object python_class(ErrorKind kind) {
  return pybind11::module_::import("allreduce.errors").attr(class_of(kind));
}

// A text of a peer or of the system may be no UTF-8: that must not hide the error.
inline pybind11::object text_of(const Error& error) {
  const std::string_view text = error.what();
  return pybind11::reinterpret_steal<pybind11::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<pybind11::ssize_t>(text.size()), "replace"));
}

inline void translate_error(std::exception_ptr pointer) {
  const auto raise = [](const Error& e, auto&&... args) {
    const auto type = python_class(e.kind());
    PyErr_SetObject(type.ptr(), type(args...).ptr());
  };
  if (!pointer) return;
  try {
    std::rethrow_exception(pointer);
  } catch (const PeerError& e) {
    raise(e, text_of(e), e.rank);
  } catch (const SystemError& e) {
    raise(e, e.error_number, text_of(e));
  } catch (const Error& e) {
    raise(e, text_of(e));
  }
}

}  // namespace hier
