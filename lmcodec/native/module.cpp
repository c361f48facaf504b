// The Python face of the kernel: argument checks and the release of the GIL, nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cancel.h"
#include "context_mixer.h"
#include "lockstep.h"
#include "module_cancel.h"
#include "module_external.h"
#include "module_gil.h"
#include "module_language_model.h"
#include "module_mixer.h"
#include "module_planes.h"
#include "module_recurrent.h"
#include "module_profile.h"
#include "module_range.h"
#include "module_rounding.h"
#include "module_times.h"
#include "module_token.h"
#include "module_transformer.h"
#include "module_vocabulary.h"
#include "module_weights.h"
#include "range_decoder.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using Words = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Probabilities = nb::ndarray<std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using lmcodec::ProfileData;

constexpr std::size_t kLearnedMax = std::size_t{1} << 22;  // values that a profile may begin with

int checked(const std::string& name, int value, int low, int high) {
  if (value < low || value > high) throw nb::value_error((name + " is out of range").c_str());
  return value;
}

void set_number(lmcodec::Profile& p, const std::string& name, int value) {
  const auto set = [&](int& field, int low, int high) { field = checked(name, value, low, high); };
  if (name == "final_selector") set(p.final_selector, 0, lmcodec::kSelectOrder0);
  else if (name == "table_log2") set(p.table_log2, 12, 28);
  else if (name == "match_log2") set(p.match_log2, 10, 24);
  else if (name == "map_limit") set(p.map_limit, 1, 1023);
  else if (name == "n_direct") set(p.n_direct, 1, lmcodec::kDirectMax);
  else if (name == "direct_limit") set(p.direct_limit, 1, 1023);
  else if (name == "weight_rate") set(p.weight_rate, 0, 64);
  else if (name == "final_rate") set(p.final_rate, 0, 64);
  else if (name == "apm_rate") set(p.apm_rate, 1, 15);
  else if (name == "apm_weight") set(p.apm_weight, 0, 16);
  else if (name == "lm") set(p.lm, 0, 1);
  else if (name == "lm_map_rate") set(p.lm_map_rate, 1, 15);
  else if (name == "n_end") set(p.n_end, 0, p.n_context);
  else if (name == "end_log2") set(p.end_log2, 10, 24);
  else throw nb::value_error(("a profile has no number called " + name).c_str());
}

std::unique_ptr<ProfileData> make_profile(const std::vector<std::vector<int>>& contexts,
                                          const std::vector<int>& selectors, const std::vector<int>& apms,
                                          const std::vector<int>& match_min, const std::vector<int>& lm_maps,
                                          const std::vector<std::pair<std::string, int>>& numbers,
                                          std::size_t max_learned) {
  auto data = std::make_unique<ProfileData>();
  lmcodec::Profile& p = data->profile;
  p.n_context = checked("the number of contexts", static_cast<int>(contexts.size()), 1, lmcodec::kContextMax);
  for (int i = 0; i < p.n_context; ++i) {
    const auto& features = contexts[static_cast<std::size_t>(i)];
    checked("the number of a context's features", static_cast<int>(features.size()), 1, lmcodec::kFeaturesPerContext);
    for (std::size_t f = 0; f < features.size(); ++f)
      p.contexts[i][f] = static_cast<std::uint8_t>(checked("a feature", features[f], 1, lmcodec::kFeatureCount - 1));
  }
  p.n_selector = checked("the number of selectors", static_cast<int>(selectors.size()), 1, lmcodec::kSelectorMax);
  for (int k = 0; k < p.n_selector; ++k)
    p.selectors[k] = static_cast<std::uint8_t>(
        checked("a selector", selectors[static_cast<std::size_t>(k)], 0, lmcodec::kSelectorCount - 1));
  p.n_apm = checked("the number of final maps", static_cast<int>(apms.size()), 0, lmcodec::kApmMax);
  for (int a = 0; a < p.n_apm; ++a)
    p.apms[a] = static_cast<std::uint8_t>(
        checked("a selector", apms[static_cast<std::size_t>(a)], 0, lmcodec::kSelectorCount - 1));
  p.n_match = checked("the number of match models", static_cast<int>(match_min.size()), 1, lmcodec::kMatchMax);
  for (int m = 0; m < p.n_match; ++m)
    p.match_min[m] = checked("a shortest match", match_min[static_cast<std::size_t>(m)], 1, 32);
  p.n_lm_map = checked("the number of the model's maps", static_cast<int>(lm_maps.size()), 0, lmcodec::kLmMapMax);
  for (int a = 0; a < p.n_lm_map; ++a)
    p.lm_maps[a] = static_cast<std::uint8_t>(
        checked("a selector", lm_maps[static_cast<std::size_t>(a)], 0, lmcodec::kSelectorCount - 1));
  for (const auto& [name, value] : numbers) set_number(p, name, value);
  if (!p.lm) {
    const auto needs_lm = [](std::uint8_t selector) { return selector >= lmcodec::kSelectLm; };
    const auto of_tokens = [](const std::uint8_t(&features)[lmcodec::kFeaturesPerContext]) {
      return std::any_of(features, features + lmcodec::kFeaturesPerContext,
                         [](std::uint8_t feature) { return feature >= lmcodec::kBegun; });
    };
    if (std::any_of(p.selectors, p.selectors + p.n_selector, needs_lm) || std::any_of(p.apms, p.apms + p.n_apm, needs_lm))
      throw nb::value_error("a selector needs a language model: lm must be 1");
    if (std::any_of(p.contexts, p.contexts + p.n_context, of_tokens) || p.n_end || p.n_lm_map)
      throw nb::value_error("contexts of tokens, token ends and a model's maps need a language model: lm must be 1");
  }
  if (p.n_input() > 256) throw nb::value_error("a mixer has at most 256 inputs");
  // Before anything is allocated for them.
  if (p.n_learned() > std::min(max_learned, kLearnedMax)) throw nb::value_error("a profile has too many weights");
  data->learned = p.neutral();
  return data;
}

// A block loop: shared tables, streams and their order. What Python sees of the context mixer.
class BlockLoop {
 public:
  BlockLoop(const ProfileData& data, int n_stream, int n_group, const std::string& isa, int enlarge)
      : n_stream_(checked("streams", n_stream, 1, lmcodec::kStreamMax)),
        mixer_(lmcodec::enlarged(data.profile, enlarge), data.learned),
        lockstep_(mixer_, n_stream, checked("groups", n_group, 1, n_stream < 2 ? n_stream : 2)) {
    if (data.profile.lm) throw nb::value_error("this profile is for blocks with a language model");
    if (!mixer_.use_isa(isa.empty() ? nullptr : isa.c_str()))
      throw nb::value_error(("this machine has no " + isa).c_str());
  }

  // Starts a block. A fresh one, or one after reset, forgets all that came before.
  void begin(std::uint32_t nbytes) {
    if (nbytes < static_cast<std::uint32_t>(n_stream_) || nbytes > lmcodec::kBlockMax)
      throw nb::value_error("a block has one byte a stream to 16 MiB");
    const lmcodec::GilReleased released;
    nbytes_ = 0;  // an allocation that fails leaves no block under way
    if (forget_) mixer_.reset(tables_nbytes_ ? tables_nbytes_ : nbytes, nbytes, n_stream_);
    forget_ = false;
    lockstep_.begin(nbytes);
    nbytes_ = nbytes;
  }

  void reset() {
    forget_ = true;
    marked_ = false;
    nbytes_ = 0;
    payload_ = Bytes();
  }

  // After a block of a single stream: the next one, and after each rewind() another, goes on from here. false if that
  // cannot be: no such block, or (rewind) too much was coded since.
  bool mark() {
    const lmcodec::GilReleased released;
    if (n_stream_ != 1 || forget_ || !done()) return false;
    mixer_.mark();
    return marked_ = true;
  }

  bool rewind() {
    const lmcodec::GilReleased released;
    if (!marked_ || !mixer_.rewind()) return false;
    nbytes_ = 0;
    forget_ = false;
    return true;
  }

  // Chains that begin from now on have tables as large as a first block of so many bytes asks for; 0: of its own.
  void size_tables(std::uint32_t nbytes) {
    if (nbytes > 1u << 24) throw nb::value_error("tables are sized for 16 MiB at most");
    tables_nbytes_ = nbytes;
  }

  // Codes decisions of data, the block's bytes, until out is full or the block ends; returns how many.
  std::size_t encode(Bytes data, Output bits, Probabilities p16) {
    // By value: bytes that are written could be pointers that are captured by reference.
    return take(data, std::min(bits.size(), p16.size()), [this, b = bits.data(), p = p16.data()](std::size_t n, int bit) {
      b[n] = static_cast<std::uint8_t>(bit);
      p[n] = static_cast<std::uint16_t>(lockstep_.p());
    });
  }

  // As encode(), with the byte of the block that each decision belongs to.
  std::size_t trace(Bytes data, Output bits, Probabilities p16, Places offset) {
    return take(data, std::min({bits.size(), p16.size(), offset.size()}), [&](std::size_t n, int bit) {
      bits.data()[n] = static_cast<std::uint8_t>(bit);
      p16.data()[n] = static_cast<std::uint16_t>(lockstep_.p());
      offset.data()[n] = lockstep_.offset();
    });
  }

  // The words that decode() reads: those of the block that was begun.
  void load(Bytes payload) {
    payload_ = payload;  // shared, not copied
    decoder_ = lmcodec::RangeDecoder(payload_.data(), payload_.size());
  }

  // Restores up to n decisions of the block to out; false if no encoder can have written the words. In parts, so that
  // the caller hears of signals between them.
  bool decode(Output out, std::size_t n) {
    if (out.size() != nbytes_ || !nbytes_) throw nb::value_error("out is not as long as the block that was begun");
    if (!payload_.is_valid()) throw nb::value_error("no payload was loaded");
    const lmcodec::GilReleased released;
    std::uint8_t* bytes = out.data();
    if (clock_) clock_->resume();
    or_lost([&] {
      for (; n && !lockstep_.done() && !decoder_.corrupt(); --n) {
        if (n % lmcodec::kLookEvery == 0) lmcodec::throw_if_set(cancel_);
        std::uint8_t& byte = bytes[lockstep_.offset()];
        const int bit = decoder_.decode(lockstep_.p());
        byte = static_cast<std::uint8_t>(byte << 1 | bit);
        lockstep_.push(bit);
      }
    });
    lmcodec::mark(clock_.get(), lmcodec::Phase::kCoder);
    return !decoder_.corrupt();
  }

  // One decision at a time, for a coder outside the kernel.
  bool done() const { return !nbytes_ || lockstep_.done(); }
  std::uint32_t position() const { return nbytes_ ? lockstep_.position() : 0; }
  std::uint32_t offset() const { return require().offset(); }
  std::uint32_t p() const { return require().p(); }
  void push(int bit) {
    require();
    or_lost([&] { lockstep_.push(bit & 1); });
  }

  // Whether to measure where the time goes, from the next block on.
  bool timed() const { return clock_ != nullptr; }
  void set_timed(bool timed) {
    if (!done()) throw nb::value_error("a block is under way");
    clock_ = timed ? std::make_unique<lmcodec::PhaseClock>() : nullptr;
    lockstep_.use_clock(clock_.get());
  }
  // Of the last block.
  nb::dict times() const { return lmcodec::times_of(clock_.get()); }
  nb::dict clock_times() const { return lmcodec::clock_times_of(clock_.get()); }

  // Once it is set, the calls that code a block throw Cancelled and the block is lost.
  void use_cancel(const lmcodec::CancelHandle* cancel) { cancel_ = lmcodec::flag_of(cancel); }

  nb::object learned() const {
    auto* copy = new std::vector<std::uint32_t>(mixer_.learned());
    nb::capsule owner(copy, [](void* p) noexcept { delete static_cast<std::vector<std::uint32_t>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<1>>(copy->data(), {copy->size()}, owner));
  }

  std::string isa() const { return mixer_.isa(); }

 private:
  // Takes up to `room` decisions of data; record(n, bit) sees the n-th before it is taken.
  template <typename Record>
  std::size_t take(Bytes data, std::size_t room, Record record) {
    if (data.size() != nbytes_ || !nbytes_) throw nb::value_error("data is not the block that was begun");
    const lmcodec::GilReleased released;
    std::size_t n = 0;
    const std::uint8_t* bytes = data.data();
    if (clock_) clock_->resume();
    lockstep_.foretell(bytes);
    or_lost([&] {
      for (; n < room && !lockstep_.done(); ++n) {
        if (n % lmcodec::kLookEvery == 0) lmcodec::throw_if_set(cancel_);
        const int bit = bytes[lockstep_.offset()] >> (7 - lockstep_.n_bit()) & 1;
        record(n, bit);
        lockstep_.push(bit);
      }
    });
    lockstep_.foretell(nullptr);
    lmcodec::mark(clock_.get(), lmcodec::Phase::kCoder);
    return n;
  }

  // Where pushing throws, the block is lost.
  template <typename Push>
  void or_lost(Push push) {
    try {
      push();
    } catch (...) {
      forget_ = true;
      nbytes_ = 0;
      throw;
    }
  }

  const lmcodec::Lockstep& require() const {
    if (done()) throw nb::value_error("no decision is open");
    return lockstep_;
  }

  const int n_stream_;
  lmcodec::ContextMixer mixer_;
  lmcodec::Lockstep lockstep_;
  std::unique_ptr<lmcodec::PhaseClock> clock_;
  lmcodec::CancelRef cancel_;
  Bytes payload_;
  lmcodec::RangeDecoder decoder_{nullptr, 0};
  std::uint32_t nbytes_ = 0;
  std::uint32_t tables_nbytes_ = 0;
  bool forget_ = true;
  bool marked_ = false;
};

}  // namespace

NB_MODULE(_kernel, m) {
  // Caches and daemon threads may hold objects until the interpreter has ended: nothing to tell a user of.
  nb::set_leak_warnings(false);
  m.doc() = "lmcodec's native kernel: integers only, the GIL released while it works.";
  nb::exception<lmcodec::Cancelled>(m, "Cancelled");
  nb::class_<lmcodec::CancelHandle>(m, "Cancel", "A flag that tells loops which were given it to give up.")
      .def(nb::init<>())
      .def("set", [](lmcodec::CancelHandle& self) { self.flag->set(); })
      .def_prop_ro("is_set", [](const lmcodec::CancelHandle& self) { return self.flag->is_set(); });
  nb::module_::import_("lmcodec.ending")
      .attr("register")(nb::cpp_function(&lmcodec::GilReleased::close), nb::cpp_function(&lmcodec::GilReleased::after_fork));
  lmcodec::bind_vocabulary(m);
  nb::class_<ProfileData>(m, "Profile", "A choice of contexts, selectors, rates and starting values.")
      .def("__init__",
           [](ProfileData* self, const std::vector<std::vector<int>>& contexts, const std::vector<int>& selectors,
              const std::vector<int>& apms, const std::vector<int>& match_min, const std::vector<int>& lm_maps,
              const std::vector<std::pair<std::string, int>>& numbers, std::size_t max_learned) {
             new (self) ProfileData(*make_profile(contexts, selectors, apms, match_min, lm_maps, numbers, max_learned));
           },
           nb::arg("contexts"), nb::arg("selectors"), nb::arg("apms"), nb::arg("match_min"), nb::arg("lm_maps"),
           nb::arg("numbers"), nb::arg("max_learned") = kLearnedMax)
      .def_prop_ro("n_learned", [](const ProfileData& self) { return self.learned.size(); })
      .def_prop_ro("n_input", [](const ProfileData& self) { return self.profile.n_input(); })
      .def_prop_ro("table_log2", [](const ProfileData& self) { return self.profile.table_log2; })
      .def_prop_ro("weights_at", [](const ProfileData& self) { return self.profile.weights_at(); })
      .def_prop_ro("cells_at", [](const ProfileData& self) { return self.profile.cells_at(); })
      .def("set_learned",
           [](ProfileData& self, Words values) {
             if (values.size() != self.learned.size()) throw nb::value_error("not as many values as the profile learns");
             std::vector<std::uint32_t> fresh(values.data(), values.data() + values.size());
             if (!self.profile.valid(fresh)) throw nb::value_error("a learned value is out of range");
             self.learned = std::move(fresh);
           },
           nb::arg("values"), "Starting values: maps, then weights; see profile.h.");
  nb::class_<BlockLoop>(m, "BlockLoop", "Context models and mixer over the streams of a block.")
      .def(nb::init<const ProfileData&, int, int, const std::string&, int>(), nb::arg("profile"), nb::arg("streams") = 1,
           nb::arg("groups") = 1, nb::arg("isa") = "", nb::arg("enlarge") = 0, nb::keep_alive<1, 2>())
      .def("begin", &BlockLoop::begin, nb::arg("nbytes"))
      .def("reset", &BlockLoop::reset)
      .def("mark", &BlockLoop::mark)
      .def("rewind", &BlockLoop::rewind)
      .def("size_tables", &BlockLoop::size_tables, nb::arg("nbytes"))
      .def("encode", &BlockLoop::encode, nb::arg("data"), nb::arg("bits"), nb::arg("p16"))
      .def("trace", &BlockLoop::trace, nb::arg("data"), nb::arg("bits"), nb::arg("p16"), nb::arg("offset"))
      .def("load", &BlockLoop::load, nb::arg("payload"))
      .def("decode", &BlockLoop::decode, nb::arg("out"), nb::arg("n"))
      .def("push", &BlockLoop::push, nb::arg("bit"))
      .def("use_cancel", &BlockLoop::use_cancel, nb::arg("cancel").none())
      .def_prop_ro("done", &BlockLoop::done)
      .def_prop_ro("position", &BlockLoop::position)
      .def_prop_ro("offset", &BlockLoop::offset)
      .def_prop_ro("p", &BlockLoop::p)
      .def_prop_rw("timed", &BlockLoop::timed, &BlockLoop::set_timed)
      .def_prop_ro("times", &BlockLoop::times)
      .def_prop_ro("clock_times", &BlockLoop::clock_times)
      .def_prop_ro("learned", &BlockLoop::learned)
      .def_prop_ro("isa", &BlockLoop::isa);
  lmcodec::bind_mixer(m);
  lmcodec::bind_language_model(m);
  lmcodec::bind_external(m);
  lmcodec::bind_planes(m);
  lmcodec::bind_range(m);
  lmcodec::bind_recurrent(m);
  lmcodec::bind_rounding(m);
  lmcodec::bind_token(m);
  lmcodec::bind_transformer(m);
  lmcodec::bind_weights(m);
}
