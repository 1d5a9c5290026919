// Errors of a group, and on their way between ranks.
#include "group/failure.h"

#include "base/error.h"

namespace hier {

std::exception_ptr Failure::error() const { return is_set() ? error_ : nullptr; }

void Failure::check() const {
  if (!is_set()) return;
  throw AbortedError("this group has failed and cannot be used any more (make a new one): " +
                     text_);
}

std::exception_ptr error_of(int sender, const ControlFrame& frame) {
  std::string text = frame.message();
  if (text.find("[reported by rank ") == std::string::npos) {  // the first reporter is of interest
    text += " [reported by rank " + std::to_string(sender) + "]";
  }
  switch (frame.kind) {
    case ErrorKind::peer:
      return std::make_exception_ptr(PeerError(frame.culprit, text));
    case ErrorKind::timeout:
      return std::make_exception_ptr(Timeout(text));
    case ErrorKind::mismatch:
      return std::make_exception_ptr(MismatchError(text));
    case ErrorKind::integrity:
      return std::make_exception_ptr(IntegrityError(text));
    default:
      return std::make_exception_ptr(AbortedError(text));
  }
}

ControlFrame frame_of(const std::exception_ptr& error, int rank) {
  ControlFrame frame;
  frame.type = ControlFrame::Type::abort;
  frame.kind = ErrorKind::aborted;
  try {
    std::rethrow_exception(error);
  } catch (const PeerError& e) {
    frame.kind = e.kind(), frame.culprit = e.rank, frame.set_text(e.what());
  } catch (const Error& e) {
    frame.kind = e.kind(), frame.set_text(e.what());
  } catch (const std::exception& e) {
    frame.set_text("rank " + std::to_string(rank) + " raised " + e.what());
  }
  return frame;
}

}  // namespace hier
