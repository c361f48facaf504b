#include "module_token.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "module_cancel.h"
#include "module_gil.h"
#include "module_mixer.h"
#include "module_profile.h"
#include "module_times.h"
#include "module_vocabulary.h"
#include "token_loop.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Log2 = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Probabilities = nb::ndarray<std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr const char* kOtherTokens = "the tokens do not spell the streams";

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

// The vocabulary's trie beside the coding that refers to it.
struct Coding {
  TokenTrie trie;
  TokenCoding coding;

  Coding(const LanguageModel& model, const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token,
         const std::int32_t* log2)
      : trie(strings, offsets, n_token), coding{model, trie, TokenStretch(log2)} {}
};

void make_coding(Coding* self, const LanguageModel& model, Bytes strings, Offsets offsets, Log2 log2) {
  const std::size_t n_token = model.n_token();
  check_vocabulary(strings, offsets, n_token);
  require(log2.size() == 1024, "the logarithms' table has 1024 entries");
  new (self) Coding(model, strings.data(), offsets.data(), n_token, log2.data());
}

// profile: of the context models; null for the language model alone. stream_nbytes: as TokenBlockLoop has it.
std::size_t token_loop_memory_nbytes(const ProfileData* data, std::uint32_t n_token, std::int64_t stream_nbytes,
                                     std::uint32_t block_nbytes, int streams, bool chained, bool encoding, int enlarge,
                                     std::uint32_t tables_nbytes) {
  require(streams >= 1 && streams <= kSessionStreamMax, "streams are 1 to 128");
  const std::size_t loop = TokenBlockLoop::memory_nbytes(n_token, stream_nbytes, block_nbytes, streams, encoding, !data);
  return loop + (data ? mixer_memory_nbytes(*data, block_nbytes, streams, chained, enlarge, tables_nbytes) : 0);
}

class TokenLoopFace {
 public:
  // data: of the context models; null for the language model alone. Their slot table may take 2^enlarge times its size.
  TokenLoopFace(const Coding& coding, const ProfileData* data, int n_stream, int n_group, const std::string& isa, int enlarge)
      : coding_(coding), n_stream_(static_cast<std::uint32_t>(n_stream)) {
    require(n_stream >= 1 && n_stream <= kSessionStreamMax, "streams are 1 to 128");
    require(n_group == 1 || (n_group == 2 && n_stream > 1), "groups are 1, or 2 with more than one stream");
    if (!data) {
      loop_ = std::make_unique<TokenBlockLoop>(coding.coding, n_stream, n_group);
      return;
    }
    require(data->profile.lm == 1, "this profile is for blocks without a language model");
    loop_ = std::make_unique<TokenBlockLoop>(coding.coding, enlarged(data->profile, enlarge), data->learned, n_stream,
                                             n_group);
    if (!loop_->mixer()->use_isa(isa.empty() ? nullptr : isa.c_str()))
      throw nb::value_error(("this machine has no " + isa).c_str());
  }

  void reset() {
    loop_->reset();
    out_ = Output();
    payload_ = Bytes();
  }

  bool mark() {
    const GilReleased released;
    return loop_->set_mark();
  }

  bool rewind() {
    const GilReleased released;
    return loop_->rewind();
  }

  // Chains that begin from now on have tables as large as a first block of so many bytes asks for; 0: of its own.
  void size_tables(std::uint32_t nbytes) {
    require(nbytes <= 1u << 24, "tables are sized for 16 MiB at most");
    loop_->size_tables(nbytes);
  }

  void begin_encode(Bytes data, Tokens tokens, bool helped) {
    const std::uint32_t nbytes = checked(data.size());
    const GilReleased released;
    // Tokens must spell the streams out, each on its own.
    std::size_t at = 0, t = 0;
    for (std::uint64_t s = 1; s <= n_stream_; ++s) {
      const std::size_t border = static_cast<std::size_t>(s * nbytes / n_stream_);
      for (; at < border && t < tokens.size(); ++t) {
        const std::uint32_t token = tokens.data()[t];
        require(token < coding_.trie.n_token(), "a token is not in the vocabulary");
        require(coding_.trie.nbytes(token) <= border - at && coding_.trie.spells(token, data.data() + at), kOtherTokens);
        at += coding_.trie.nbytes(token);
      }
      require(at == border, kOtherTokens);
    }
    require(t == tokens.size(), "there are more tokens than the streams have");
    loop_->begin_encode(data.data(), nbytes, tokens.data(), tokens.size(), helped);
  }

  std::size_t encode(Output bits, Probabilities p16) {
    require(loop_->encoding(), "no block is being encoded");
    const GilReleased released;
    return loop_->encode(bits.data(), p16.data(), std::min(bits.size(), p16.size()));
  }

  std::size_t trace(Output bits, Probabilities p16, Places offset, Probabilities network_p16) {
    require(loop_->encoding(), "no block is being encoded");
    const GilReleased released;
    const std::size_t room = std::min({bits.size(), p16.size(), offset.size(), network_p16.size()});
    return loop_->trace(bits.data(), p16.data(), offset.data(), network_p16.data(), room);
  }

  void begin_decode(Output out, Bytes payload, bool helped) {
    const std::uint32_t nbytes = checked(out.size());
    out_ = out;  // shared, not copied
    payload_ = payload;
    const GilReleased released;
    loop_->begin_decode(out.data(), nbytes, payload.data(), payload.size(), helped);
  }

  bool decode(std::size_t n) {
    require(loop_->decoding(), "no block is being decoded");
    const GilReleased released;
    return loop_->decode(n);
  }

  bool done() const { return loop_->done(); }
  std::uint32_t position() const { return loop_->position(); }
  std::uint32_t p() const {
    require(!done(), "no decision is open");
    return loop_->p();
  }
  void push(int bit) {
    require(!done(), "no decision is open");
    require(loop_->push(bit & 1), "the block that is encoded has another bit here");
  }

  // Once it is set, the calls that code a block throw Cancelled and the block is lost.
  void use_cancel(const CancelHandle* cancel) { loop_->use_cancel(flag_of(cancel)); }

  // Whether to measure where the time goes, from the next block on.
  bool timed() const { return loop_->clock() != nullptr; }
  void set_timed(bool timed) {
    require(loop_->may_begin(), "a block is under way");
    loop_->set_timed(timed);
  }
  // Of the block at hand, or of the last one.
  nb::dict times() const {
    nb::dict times = times_of(loop_->clock());
    if (!loop_->clock()) return times;
    const SessionTimes network = loop_->network_times();
    times["products"] = network.products;
    times["elements"] = network.elements;
    times["frequencies"] = network.frequencies;
    return times;
  }
  nb::dict clock_times() const { return clock_times_of(loop_->clock()); }

  nb::object learned() const {
    require(loop_->mixer(), "the language model alone learns nothing");
    auto* values = new std::vector<std::uint32_t>(loop_->mixer()->learned());
    nb::capsule owner(values, [](void* p) noexcept { delete static_cast<std::vector<std::uint32_t>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<1>>(values->data(), {values->size()}, owner));
  }

 private:
  std::uint32_t checked(std::size_t nbytes) const {
    require(nbytes >= n_stream_ && nbytes <= 1u << 24, "a block has one byte a stream to 16 MiB");
    require(loop_->may_begin(), "the block before has not ended: reset first");
    return static_cast<std::uint32_t>(nbytes);
  }

  const Coding& coding_;
  const std::uint32_t n_stream_;
  Output out_;
  Bytes payload_;
  std::unique_ptr<TokenBlockLoop> loop_;
};

}  // namespace

void bind_token(nb::module_& m) {
  nb::class_<Coding>(m, "TokenCoding", "A language model and the trie of its vocabulary.")
      .def("__init__", &make_coding, nb::arg("model"), nb::arg("strings"), nb::arg("offsets"), nb::arg("log2"),
           nb::keep_alive<1, 2>());
  m.def("token_loop_memory_nbytes", &token_loop_memory_nbytes, nb::arg("profile").none(), nb::arg("n_token"),
        nb::arg("stream_nbytes"), nb::arg("block_nbytes"), nb::arg("streams") = 1, nb::arg("chained") = false,
        nb::arg("encoding") = false, nb::arg("enlarge") = 0, nb::arg("tables_nbytes") = 0,
        "Bytes that a loop over such a block takes at most, the context models' among them; without the model.");
  nb::class_<TokenLoopFace>(m, "TokenLoop",
                            "Language model, context models and mixer, or the model alone, over the streams of a block.")
      .def(nb::init<const Coding&, const ProfileData*, int, int, const std::string&, int>(), nb::arg("coding"),
           nb::arg("profile").none(), nb::arg("streams") = 1, nb::arg("groups") = 1, nb::arg("isa") = "",
           nb::arg("enlarge") = 0, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def("reset", &TokenLoopFace::reset)
      .def("mark", &TokenLoopFace::mark)
      .def("rewind", &TokenLoopFace::rewind)
      .def("size_tables", &TokenLoopFace::size_tables, nb::arg("nbytes"))
      .def("begin_encode", &TokenLoopFace::begin_encode, nb::arg("data"), nb::arg("tokens"), nb::arg("helped") = false)
      .def("encode", &TokenLoopFace::encode, nb::arg("bits"), nb::arg("p16"))
      .def("trace", &TokenLoopFace::trace, nb::arg("bits"), nb::arg("p16"), nb::arg("offset"), nb::arg("network_p16"))
      .def("begin_decode", &TokenLoopFace::begin_decode, nb::arg("out"), nb::arg("payload"), nb::arg("helped") = false)
      .def("decode", &TokenLoopFace::decode, nb::arg("n"))
      .def("push", &TokenLoopFace::push, nb::arg("bit"))
      .def("use_cancel", &TokenLoopFace::use_cancel, nb::arg("cancel").none())
      .def_prop_ro("done", &TokenLoopFace::done)
      .def_prop_ro("position", &TokenLoopFace::position)
      .def_prop_ro("p", &TokenLoopFace::p)
      .def_prop_rw("timed", &TokenLoopFace::timed, &TokenLoopFace::set_timed)
      .def_prop_ro("times", &TokenLoopFace::times)
      .def_prop_ro("clock_times", &TokenLoopFace::clock_times)
      .def_prop_ro("learned", &TokenLoopFace::learned);
}

}  // namespace lmcodec
