// Runs the kernel without Python, so that test_kernel_builds.py can compare builds of it: other optimisation, sanitizers.
//
//   native_driver encode PROFILE LEARNED ISA STREAMS GROUPS [TEXT]...
//       codes a chain of blocks; writes u32 p << 1 | bit for every decision
//   native_driver decode PROFILE LEARNED ISA STREAMS GROUPS [PAYLOAD NBYTES]...
//       decodes a chain; writes a byte 1 and the original, or a byte 0 where a payload is corrupt
//   native_driver isas
//       the mixer's instruction sets here, the best first
//   native_driver progress PROFILE TEXT
//       takes a block through the mixer by the calls of the lockstep loops; a line for each call that changes how far the
//       stream is with its byte: the call, then Progress before and after
//   native_driver planes SEED N
//       N blocks of numbers, of random layouts and with or without a base: the two decoders give them back, and take 30
//       damaged payloads of each, of which they give or refuse the same. Writes how many were refused.
//   native_driver words PROBABILITIES BITS
//       encodes a bit, in a byte, under each u16; writes the sealed words, each most significant byte first
//   native_driver range PROBABILITIES PAYLOAD
//       decodes a bit under each u16; writes a byte each, bit 1 set from where the payload is corrupt
//
// PROFILE holds numbers in text: lists with their length before them (the contexts' features, context by context; selectors;
// final maps; shortest matches), then names and values: those of module.cpp, in the macro LMCODEC_NUMBERS as NUMBER(name)
// each. LEARNED holds u32, "-" is the neutral state; ISA "-" is the best.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "context_mixer.h"
#include "lockstep.h"
#include "planes.h"
#include "range_decoder.h"
#include "range_encoder.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "native_driver: %s\n", what.c_str());
  std::exit(2);
}

Bytes read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(std::string("cannot read ") + path);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

template <typename T>
std::vector<T> read_as(const char* path) {
  const Bytes bytes = read(path);
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

template <typename T>
void write(const std::vector<T>& values) {
  if (!values.empty()) std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

lmcodec::Profile read_profile(const char* path) {
  std::ifstream file(path);
  lmcodec::Profile p;
  const auto number = [&] {
    int value;
    if (!(file >> value)) fail("the profile's text ends too early");
    return value;
  };
  const auto byte = [&] { return static_cast<std::uint8_t>(number()); };
  p.n_context = number();
  for (int i = 0; i < p.n_context; ++i)
    for (int f = 0, n = number(); f < n; ++f) p.contexts[i][f] = byte();
  p.n_selector = number();
  for (int k = 0; k < p.n_selector; ++k) p.selectors[k] = byte();
  p.n_apm = number();
  for (int a = 0; a < p.n_apm; ++a) p.apms[a] = byte();
  p.n_match = number();
  for (int m = 0; m < p.n_match; ++m) p.match_min[m] = number();
  const struct {
    const char* name;
    int* field;
  } numbers[] = {
#define NUMBER(name) {#name, &p.name},
      LMCODEC_NUMBERS
#undef NUMBER
  };
  for (std::string name; file >> name;) {
    bool known = false;
    for (const auto& entry : numbers)
      if (name == entry.name) {
        *entry.field = number();
        known = true;
      }
    if (!known) fail("no number called " + name);
  }
  return p;
}

// A payload of its very size: a read beyond it is seen by the sanitizers.
const char* decode_planes(const Bytes& payload, const Bytes* base, Bytes& out, bool portable) {
  const auto exact = std::make_unique<std::uint8_t[]>(payload.size());
  std::copy(payload.begin(), payload.end(), exact.get());
  return lmcodec::decode_planes(exact.get(), payload.size(), base ? base->data() : nullptr, out.data(), out.size(), portable,
                                nullptr);
}

int planes(unsigned seed, int n) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random() % bound); };
  int refused = 0;
  for (int i = 0; i < n; ++i) {
    lmcodec::PlaneLayout layout;
    for (std::size_t fields = 1 + below(4); fields; --fields)
      layout.fields.push_back({1u << below(4), below(2) == 1, below(2) == 1, static_cast<std::uint32_t>(1 + below(3))});
    Bytes data(layout.record_nbytes() + below(i % 10 ? 9000 : 200000)), near(data.size());
    const std::size_t kind = below(3);
    for (std::size_t k = 0; k < data.size(); ++k) {
      data[k] = static_cast<std::uint8_t>(kind == 0 ? below(256) : kind == 1 ? below(3) : 100 + below(7) * below(5));
      near[k] = static_cast<std::uint8_t>(data[k] + (below(9) == 0));
    }
    const Bytes* const base = below(3) ? nullptr : &near;
    lmcodec::PlaneOptions options;
    options.row_nbytes = below(2) * layout.record_nbytes() * (32 + below(64));
    options.base_at = below(300);
    options.portable = below(2) == 1;
    const Bytes payload =
        lmcodec::encode_planes(layout, options, data.data(), base ? base->data() : nullptr, data.size(), nullptr);
    for (int damages = 0; damages < 30; ++damages) {
      Bytes damaged = payload;
      for (std::size_t k = damages ? 1 + below(3) : 0; k; --k)
        damaged[below(below(2) ? std::min<std::size_t>(damaged.size(), 60) : damaged.size())] =
            static_cast<std::uint8_t>(random());
      if (damages && !below(4)) damaged.resize(below(damaged.size()));
      Bytes best(data.size()), portable(data.size());
      const char* const why = decode_planes(damaged, base, best, false);
      if (!why != !decode_planes(damaged, base, portable, true)) fail("one decoder refuses what another takes");
      if (!why && best != portable) fail("two decoders differ");
      if (!damages && (why || best != data)) fail("a block is not restored");
      refused += why != nullptr;
    }
  }
  return refused;
}

void encode(lmcodec::Lockstep& lockstep, const Bytes& text) {
  std::vector<std::uint32_t> decisions;
  lockstep.begin(static_cast<std::uint32_t>(text.size()));
  lockstep.foretell(text.data());
  while (!lockstep.done()) {
    const int bit = text[lockstep.offset()] >> (7 - lockstep.n_bit()) & 1;
    decisions.push_back(lockstep.p() << 1 | static_cast<std::uint32_t>(bit));
    lockstep.push(bit);
  }
  write(decisions);
}

void decode(lmcodec::Lockstep& lockstep, const Bytes& payload, std::size_t nbytes) {
  Bytes out(nbytes + 1);
  lmcodec::RangeDecoder decoder(payload.data(), payload.size());
  for (lockstep.begin(static_cast<std::uint32_t>(nbytes)); !lockstep.done() && !decoder.corrupt();) {
    std::uint8_t& byte = out[1 + lockstep.offset()];
    const int bit = decoder.decode(lockstep.p());
    byte = static_cast<std::uint8_t>(byte << 1 | bit);
    lockstep.push(bit);
  }
  out[0] = !decoder.corrupt();
  if (decoder.corrupt()) out.resize(1);
  write(out);
}

// The calls that lockstep.cpp and token_lockstep.cpp make, of one stream.
class Walk {
 public:
  Walk(const lmcodec::Profile& profile, const std::vector<std::uint32_t>& learned, const Bytes& text)
      : mixer_(profile, learned), text_(text) {
    mixer_.reset(static_cast<std::uint32_t>(text.size()), 1);
  }

  // Without a language model; foretold: as where a block is encoded.
  void bytes(bool foretold) {
    mixer_.begin_block(static_cast<std::uint32_t>(text_.size()));
    for (std::uint8_t byte : text_) {
      for (int n_bit = 0; n_bit < 8; ++n_bit) {
        if (n_bit % 4 == 0) call("fetch", [&] { mixer_.fetch(0); });
        call("learn", [&] { mixer_.learn(); });
        if (n_bit == 0 && foretold) call("foretell", [&] { mixer_.foretell(0, byte); });
        if (n_bit % 4 == 0) call("lookup", [&] { mixer_.lookup(0); });
        if (n_bit == 4) call("foresee", [&] { mixer_.foresee(0); });
        code(byte >> (7 - n_bit) & 1);
      }
      call("end_byte", [&] { mixer_.end_byte(0); });
    }
    call("learn", [&] { mixer_.learn(); });
  }

  // With one: some nibbles need no coding, and some tokens may end.
  void tokens() {
    mixer_.begin_block(static_cast<std::uint32_t>(text_.size()));
    for (std::size_t i = 0; i < text_.size(); ++i) {
      call("begin_byte", [&] { mixer_.begin_byte(0); });
      if (i / 4 % 2) call("lookup_end", [&] { mixer_.lookup_end(0, text_[i]); });
      call("begin_byte", [&] { mixer_.begin_byte(0); });  // the token goes on
      for (int n_bit = 0; n_bit < 8; ++n_bit) {
        const int bit = text_[i] >> (7 - n_bit) & 1;
        if (i >> (n_bit / 4) & 1) {
          call("skip", [&] { mixer_.skip(0, bit); });
          continue;
        }
        if (!mixer_.fetched(0)) {
          call("set_place", [&] { mixer_.set_place(0, 1, 1, text_[i], 0); });
          call("fetch", [&] { mixer_.fetch(0); });
          call("lookup", [&] { mixer_.lookup(0); });
          if (!mixer_.fetched(0)) fail("a nibble was looked up, and is not there");
        }
        mixer_.set_lm(0, static_cast<std::int32_t>(i) - 100);
        code(bit);
        call("learn", [&] { mixer_.learn(); });
      }
      call("end_byte", [&] { mixer_.end_byte(0); });
    }
  }

 private:
  template <typename Call>
  void call(const char* name, Call call) {
    const lmcodec::Progress before = mixer_.progress(0);
    call();
    const lmcodec::Progress after = mixer_.progress(0);
    if (before != after) std::printf("%s %d %d\n", name, static_cast<int>(before), static_cast<int>(after));
  }

  void code(int bit) {
    const int stream = 0;
    const std::uint8_t bits[1] = {static_cast<std::uint8_t>(bit)};
    std::uint32_t p;
    call("predict", [&] { mixer_.predict(&stream, 1, &p); });
    call("take", [&] { mixer_.take(&stream, 1, bits); });
  }

  lmcodec::ContextMixer mixer_;
  const Bytes text_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "isas")) {
    int n;
    const lmcodec::MixingKernels* kernels = lmcodec::mixing_kernels(&n);
    for (int i = 0; i < n; ++i) std::printf("%s\n", kernels[i].isa);
    return std::fflush(stdout);
  }
  if (argc == 4 && !std::strcmp(argv[1], "progress")) {
    const lmcodec::Profile profile = read_profile(argv[2]);
    const std::vector<std::uint32_t> learned = profile.neutral();
    Walk walk(profile, learned, read(argv[3]));
    if (profile.lm) walk.tokens();
    for (int foretold = 0; !profile.lm && foretold < 2; ++foretold) walk.bytes(foretold == 1);
    return std::fflush(stdout);
  }
  if (argc == 4 && !std::strcmp(argv[1], "planes")) {
    std::printf("%d\n", planes(static_cast<unsigned>(std::atoi(argv[2])), std::atoi(argv[3])));
    return std::fflush(stdout);
  }
  if (argc == 4 && !std::strcmp(argv[1], "range")) {
    const Bytes payload = read(argv[3]);
    lmcodec::RangeDecoder decoder(payload.data(), payload.size());
    Bytes bits;
    for (std::uint16_t p16 : read_as<std::uint16_t>(argv[2]))
      bits.push_back(static_cast<std::uint8_t>(decoder.decode(p16) | (decoder.corrupt() ? 2 : 0)));
    write(bits);
    return 0;
  }
  if (argc == 4 && !std::strcmp(argv[1], "words")) {
    const Bytes bits = read(argv[3]);
    const std::vector<std::uint16_t> p16 = read_as<std::uint16_t>(argv[2]);
    lmcodec::RangeEncoder encoder;
    for (std::size_t i = 0; i < bits.size(); ++i) encoder.encode(bits[i], p16[i]);
    Bytes bytes;
    for (const std::uint32_t word : encoder.sealed())
      for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<std::uint8_t>(word >> shift));
    write(bytes);
    return 0;
  }
  if (argc < 7) fail("too few arguments");
  const bool encodes = !std::strcmp(argv[1], "encode");
  const lmcodec::Profile profile = read_profile(argv[2]);
  std::vector<std::uint32_t> learned = profile.neutral();
  if (std::strcmp(argv[3], "-")) {
    learned = read_as<std::uint32_t>(argv[3]);
    if (learned.size() != profile.n_learned() || !profile.valid(learned)) fail("not the state of this profile");
  }
  lmcodec::ContextMixer mixer(profile, learned);
  if (std::strcmp(argv[4], "-") && !mixer.use_isa(argv[4])) fail("no such instruction set");
  const int n_stream = std::atoi(argv[5]);
  lmcodec::Lockstep lockstep(mixer, n_stream, std::atoi(argv[6]));
  for (int i = 7; i < argc; i += encodes ? 1 : 2) {
    const Bytes input = read(argv[i]);
    const std::size_t nbytes = encodes ? input.size() : static_cast<std::size_t>(std::atoi(argv[i + 1]));
    if (i == 7) mixer.reset(static_cast<std::uint32_t>(nbytes), n_stream);
    if (encodes)
      encode(lockstep, input);
    else
      decode(lockstep, input, nbytes);
  }
  return std::fflush(stdout);
}
