// Codes blocks with a language model without Python, so that test_token_loop.py can compare builds of the kernel.
//
//   token_driver encode MODEL VOCABULARY PROFILE NETWORK_ISA MIXING_ISA STREAMS GROUPS [TEXT TOKENS]...
//       codes a chain of blocks; writes u32 p << 1 | bit for every decision
//   token_driver decode MODEL VOCABULARY PROFILE NETWORK_ISA MIXING_ISA STREAMS GROUPS [PAYLOAD NBYTES]...
//       decodes a chain; writes a byte 1 and the original, or a byte 0 where a payload is corrupt and the chain ends
//   token_driver isas
//       writes the names of the network's instruction sets, then of the mixer's, a line each
//   token_driver abandon PROFILE
//       leaves a block of method cm inside a byte and begins another
//
// MODEL is as driver_files.h has it. VOCABULARY holds u32 (V + 1) offsets, i32 the table of logarithms, the strings;
// TOKENS u16. PROFILE holds i32: lists with their length before them (the contexts' features, context by context;
// selectors; final maps; shortest matches; the model's maps); values of the numbers of module.cpp, which are in the macro LMCODEC_NUMBERS as
// NUMBER(name) each; u32 learned values, the neutral ones if there are none. It is - for the language model alone.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "context_mixer.h"
#include "driver_files.h"
#include "lockstep.h"
#include "recurrent.h"
#include "token_loop.h"
#include "token_trie.h"

namespace {

using driver::fail;
using driver::Reader;
using driver::write;

lmcodec::Profile read_profile(Reader& file) {
  lmcodec::Profile p;
  const auto list = [&file](std::uint8_t* values) {
    const int n = file.number();
    for (int i = 0; i < n; ++i) values[i] = static_cast<std::uint8_t>(file.number());
    return n;
  };
  p.n_context = file.number();
  for (int i = 0; i < p.n_context; ++i) list(p.contexts[i]);
  p.n_selector = list(p.selectors);
  p.n_apm = list(p.apms);
  p.n_match = file.number();
  for (int m = 0; m < p.n_match; ++m) p.match_min[m] = file.number();
  p.n_lm_map = list(p.lm_maps);
#define NUMBER(name) p.name = file.number();
  LMCODEC_NUMBERS
#undef NUMBER
  return p;
}

std::vector<std::uint32_t> read_learned(Reader& file, const lmcodec::Profile& profile) {
  const std::size_t n = file.left<std::uint32_t>();
  if (!n) return profile.neutral();
  const auto values = file.array<std::uint32_t>(n);
  std::vector<std::uint32_t> learned(values.get(), values.get() + n);
  if (n != profile.n_learned() || !profile.valid(learned)) fail("not the state of this profile");
  return learned;
}

void encode(lmcodec::TokenBlockLoop& coder, const char* text_path, const char* tokens_path) {
  Reader text_file(text_path), tokens_file(tokens_path);
  const std::size_t nbytes = text_file.left<std::uint8_t>(), n_token = tokens_file.left<std::uint32_t>();
  {
    const auto text = text_file.array<std::uint8_t>(nbytes);
    const auto tokens = tokens_file.array<std::uint32_t>(n_token);
    coder.begin_encode(text.get(), static_cast<std::uint32_t>(nbytes), tokens.get(), n_token);
  }
  constexpr std::size_t kRoom = 777;
  const std::unique_ptr<std::uint8_t[]> bits(new std::uint8_t[kRoom]);
  const std::unique_ptr<std::uint16_t[]> p16(new std::uint16_t[kRoom]);
  std::vector<std::uint32_t> offset(kRoom);
  std::vector<std::uint16_t> network_p16(kRoom);
  bool traces = false;  // the two list the same decisions
  const auto more = [&] {
    traces = !traces;
    return traces ? coder.trace(bits.get(), p16.get(), offset.data(), network_p16.data(), kRoom)
                  : coder.encode(bits.get(), p16.get(), kRoom);
  };
  while (const std::size_t n = more()) {
    for (std::size_t i = 0; traces && i < n; ++i)
      if (offset[i] >= nbytes || !network_p16[i]) fail("a decision of no byte");
    std::vector<std::uint32_t> decisions;
    for (std::size_t i = 0; i < n; ++i) decisions.push_back(static_cast<std::uint32_t>(p16[i]) << 1 | bits[i]);
    write(decisions.data(), n);
  }
}

bool decode(lmcodec::TokenBlockLoop& coder, const char* payload_path, std::size_t nbytes) {
  Reader file(payload_path);
  const std::size_t payload_nbytes = file.left<std::uint8_t>();
  const auto payload = file.array<std::uint8_t>(payload_nbytes);
  const std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[nbytes]());
  coder.begin_decode(out.get(), static_cast<std::uint32_t>(nbytes), payload.get(), payload_nbytes);
  bool good = true;
  while (good && !coder.done()) good = coder.decode(777);
  const std::uint8_t verdict = good;
  write(&verdict, 1);
  if (good) write(out.get(), nbytes);
  return good;
}

void abandon(const char* path) {
  Reader file(path);
  const lmcodec::Profile profile = read_profile(file);
  const std::vector<std::uint32_t> learned = read_learned(file, profile);
  lmcodec::ContextMixer mixer(profile, learned);
  lmcodec::Lockstep lockstep(mixer, 1, 1);
  mixer.reset(100, 1);
  lockstep.begin(100);
  for (int i = 0; i < 13; ++i) lockstep.push(1);
  for (lockstep.begin(100); !lockstep.done();) lockstep.push(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && !std::strcmp(argv[1], "abandon")) {
    abandon(argv[2]);
    return 0;
  }
  if (argc == 2 && !std::strcmp(argv[1], "isas")) {
    int n;
    const lmcodec::NetworkKernels* networks = lmcodec::network_kernels(&n);
    for (int i = 0; i < n; ++i) std::printf("%s ", networks[i].isa);
    const lmcodec::MixingKernels* mixers = lmcodec::mixing_kernels(&n);
    std::printf("\n");
    for (int i = 0; i < n; ++i) std::printf("%s ", mixers[i].isa);
    return 0;
  }
  if (argc < 9) fail("too few arguments");
  const bool encodes = !std::strcmp(argv[1], "encode");
  const std::unique_ptr<lmcodec::RecurrentModel> network = driver::read_network(argv[2], argv[5]);
  const std::size_t n_token = static_cast<std::size_t>(network->shape().vocab_size);
  Reader vocabulary(argv[3]);
  const auto offsets = vocabulary.array<std::uint32_t>(n_token + 1);
  const auto log2 = vocabulary.array<std::int32_t>(1024);
  const auto strings = vocabulary.array<std::uint8_t>(offsets[n_token]);
  const lmcodec::TokenTrie trie(strings.get(), offsets.get(), n_token);
  const lmcodec::TokenCoding coding = {*network, trie, lmcodec::TokenStretch(log2.get())};
  const int n_stream = std::atoi(argv[7]), n_group = std::atoi(argv[8]);
  std::vector<std::uint32_t> learned;  // kept by reference
  std::unique_ptr<lmcodec::TokenBlockLoop> made;
  if (!std::strcmp(argv[4], "-")) {
    made = std::make_unique<lmcodec::TokenBlockLoop>(coding, n_stream, n_group);
  } else {
    Reader file(argv[4]);
    const lmcodec::Profile profile = read_profile(file);
    learned = read_learned(file, profile);
    made = std::make_unique<lmcodec::TokenBlockLoop>(coding, profile, learned, n_stream, n_group);
    if (!made->mixer()->use_isa(argv[6])) fail("no such instruction set");
  }
  lmcodec::TokenBlockLoop& coder = *made;
  for (int i = 9; i + 1 < argc; i += 2) {
    if (encodes)
      encode(coder, argv[i], argv[i + 1]);
    else if (!decode(coder, argv[i], static_cast<std::size_t>(std::atoi(argv[i + 1]))))
      break;
  }
  return std::fflush(stdout);
}
