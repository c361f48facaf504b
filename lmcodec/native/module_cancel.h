// A flag as Python holds it: it lives as long as anyone in the kernel looks at it, with the GIL or without.
#pragma once

#include <memory>

#include "cancel.h"

namespace lmcodec {

struct CancelHandle {
  std::shared_ptr<Cancel> flag = std::make_shared<Cancel>();
};

inline CancelRef flag_of(const CancelHandle* handle) { return handle ? handle->flag : nullptr; }

}  // namespace lmcodec
