// What the loop of blocks needs of a language model. Every kind of model implements these two classes, and nothing else
// in the kernel knows a kind. lm/interface.py is the same seam in Python; FORMAT.md section 8 says what is done with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cancel.h"

namespace lmcodec {

constexpr int kSessionStreamMax = 128;
constexpr std::uint32_t kVocabMax = 1u << 20;  // tokens of a vocabulary

// Seconds that a session spent on each kind of work.
struct SessionTimes {
  double products = 0;
  double elements = 0;
  double frequencies = 0;
};

// Who takes a part of every product.
enum class Help {
  kNone,
  kThread,  // a second thread, if there can be one; for steps of few streams, which are bound by one core's reading of the
            // weights
  kLent,    // one that waits for the step, while it lends its time
};

struct SessionOptions {
  Help help = Help::kNone;
  bool timed = false;  // whether times() tells where the time goes
  CancelRef cancel = nullptr;  // once the flag is set, step() and run() throw Cancelled
};

// Tokens low to high - 1 of the sorted vocabulary, at a position of a run numbered t * B + b.
struct TokenSpan {
  std::uint32_t row, low, high;
};

class LanguageModel;

// The states of B streams, 1 to 128, and what their last step gave. One thread at a time.
class LmSession {
 public:
  // Called for rows of positions first to first + n - 1, numbered t * B + b: it may look at rows 0 to n - 1 until it
  // returns.
  using Rows = std::function<void(std::size_t first, int n)>;

  virtual ~LmSession() = default;
  virtual const LanguageModel& model() const = 0;
  virtual int n_stream() const = 0;
  // A stream begins: before the first token of a document, or (cut) of a text from the middle of one. It is stepped next
  // by LanguageModel::start_token(cut).
  virtual void begin(int stream, bool cut) = 0;
  // Where it can be carried on by another session of the same model: a stream's state, as numbers; false where it cannot.
  virtual bool save(int stream, std::vector<std::int32_t>& to) {
    static_cast<void>(stream), static_cast<void>(to);
    return false;
  }
  // After begin(): goes on where such a state was saved.
  virtual void restore(int stream, const std::vector<std::int32_t>& from) {
    static_cast<void>(stream), static_cast<void>(from);
  }
  // One token each: (B) tokens. Row b of what follows is stream b's. For streams that are over any token may stand.
  virtual void step(const std::uint32_t* tokens) = 0;
  // n_step tokens each: (n_step, B) tokens in time order, the same integers as n_step steps, in pieces.
  virtual void run(const std::uint32_t* tokens, std::size_t n_step, const Rows& rows) {
    const std::size_t b = static_cast<std::size_t>(n_stream());
    for (std::size_t t = 0; t < n_step; ++t) {
      step(tokens + t * b);
      rows(t * b, n_stream());
    }
  }
  // Positions that sums() answers for at once, at least B of them; 0 where it does not, and run() is to be used.
  virtual std::size_t sum_rows() const { return 0; }
  // run() in one piece, of which only the sums of the frequencies of some spans come back: (n) to `sum`. The spans ascend
  // by their rows. For models whose frequencies are made far from here.
  virtual void sums(const std::uint32_t* tokens, std::size_t n_step, const TokenSpan* spans, std::size_t n,
                    std::uint64_t* sum) {
    static_cast<void>(tokens), static_cast<void>(n_step), static_cast<void>(spans), static_cast<void>(n);
    static_cast<void>(sum);
    throw std::logic_error("this session gives no sums");
  }
  // (V) frequencies of the next token over the sorted vocabulary, each 1 to 2^24. FORMAT.md section 6.4.
  virtual const std::uint32_t* frequencies(int row) const = 0;
  // Sum of the frequencies of tokens low to high - 1, low <= high <= V.
  virtual std::uint64_t span(int row, std::uint32_t low, std::uint32_t high) const = 0;
  // With Help::kLent: the calling thread takes a part of another's step until done(), or for a while.
  virtual void lend(const std::function<bool()>& done) { static_cast<void>(done); }
  virtual SessionTimes times() const { return {}; }
};

// Immutable, and may serve many sessions.
class LanguageModel {
 public:
  virtual ~LanguageModel() = default;
  // V, tokens of the sorted vocabulary: 256 to 2^20.
  virtual std::uint32_t n_token() const = 0;
  // Tokens that a step takes are below it: the vocabulary's, and those that begin streams.
  virtual std::uint32_t n_input() const = 0;
  // The token that a stream is stepped by first, before any of its own: V or more, the model's own business.
  virtual std::uint32_t start_token(bool cut) const = 0;
  // Whether sessions may be stepped by another thread than the one that made them, while that one does other work.
  virtual bool may_be_helped() const { return true; }
  virtual std::unique_ptr<LmSession> session(int n_stream, const SessionOptions& options) const = 0;
};

}  // namespace lmcodec
