#include "module_external.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "external_model.h"
#include "module_gil.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

using Exponentials = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const std::int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<const std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A copy that Python may keep.
nb::object given_away(const std::uint32_t* values, std::size_t n_row, std::size_t n_column) {
  auto* copy = new std::uint32_t[n_row * n_column];
  nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<std::uint32_t*>(p); });
  std::memcpy(copy, values, n_row * n_column * sizeof(std::uint32_t));
  return nb::cast(nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<2>>(copy, {n_row, n_column}, owner));
}

// A Python object with begin(stream, cut), run(tokens (T, B) uint32) -> (T, B, V) int32 logits, sum_rows, and where that is
// not 0 sums(tokens, spans (n, 3) uint32) -> (n,) uint64. Called from loops that have released the GIL.
class PythonStates : public ExternalStates {
 public:
  PythonStates(nb::object states, int n_stream, std::uint32_t n_token)
      : states_(std::move(states)), n_stream_(static_cast<std::size_t>(n_stream)), n_token_(n_token),
        sum_rows_(nb::cast<std::size_t>(states_.attr("sum_rows"))) {}
  PythonStates(const PythonStates&) = delete;
  PythonStates& operator=(const PythonStates&) = delete;
  ~PythonStates() override {
    const GilAcquired acquired;
    states_.reset();
  }

  void begin(int stream, bool cut) override {
    const GilAcquired acquired;
    states_.attr("begin")(stream, cut);
  }

  void run(const std::uint32_t* tokens, std::size_t n_step,
           const std::function<std::int32_t*(std::size_t)>& at) override {
    const GilAcquired acquired;
    const std::size_t n_row = n_step * n_stream_;
    const nb::object given = states_.attr("run")(given_away(tokens, n_step, n_stream_));
    Logits logits;
    if (!nb::try_cast(given, logits, false) || logits.shape(0) != n_step || logits.shape(1) != n_stream_ ||
        logits.shape(2) != n_token_)
      throw nb::value_error("a session's run() must give contiguous int32 logits of shape (T, B, V)");
    for (std::size_t row = 0; row < n_row; ++row)
      std::memcpy(at(row), logits.data() + row * n_token_, n_token_ * sizeof(std::int32_t));
  }

  std::size_t sum_rows() const override { return sum_rows_; }

  void sums(const std::uint32_t* tokens, std::size_t n_step, const TokenSpan* spans, std::size_t n,
            std::uint64_t* sum) override {
    static_assert(sizeof(TokenSpan) == 3 * sizeof(std::uint32_t), "spans are rows of three numbers");
    const GilAcquired acquired;
    const nb::object given = states_.attr("sums")(given_away(tokens, n_step, n_stream_),
                                                  given_away(reinterpret_cast<const std::uint32_t*>(spans), n, 3));
    Sums sums;
    if (!nb::try_cast(given, sums, false) || sums.shape(0) != n)
      throw nb::value_error("a session's sums() must give as many contiguous uint64 sums as there are spans");
    std::memcpy(sum, sums.data(), n * sizeof(std::uint64_t));
  }

 private:
  nb::object states_;
  const std::size_t n_stream_, n_token_, sum_rows_;
};

void make_external(ExternalModel* self, std::uint32_t n_token, std::uint32_t start, std::uint32_t start_cut,
                   nb::callable make, Exponentials exp2_coarse, Exponentials exp2_fine, const std::string& isa,
                   std::uint32_t steps_at_once) {
  if (exp2_coarse.size() != 16 || exp2_fine.size() != 16) throw nb::value_error("a table has not the expected size");
  // Sessions are made and dropped by loops that have released the GIL; the callable itself goes with the model.
  std::shared_ptr<nb::callable> shared(new nb::callable(std::move(make)), [](nb::callable* p) {
    const GilAcquired acquired;
    delete p;
  });
  new (self) ExternalModel(n_token, start, start_cut, exp2_coarse.data(), exp2_fine.data(),
                           isa.empty() ? nullptr : isa.c_str(), steps_at_once, [shared, n_token](int n_stream) {
                             const GilAcquired acquired;
                             return std::unique_ptr<ExternalStates>(
                                 std::make_unique<PythonStates>((*shared)(n_stream), n_stream, n_token));
                           });
}

}  // namespace

void bind_external(nb::module_& m) {
  nb::class_<ExternalModel, LanguageModel>(
      m, "ExternalModel", "A language model outside the kernel, which makes frequencies of its logits.")
      .def("__init__", &make_external, nb::arg("n_token"), nb::arg("start"), nb::arg("start_cut"), nb::arg("make"),
           nb::arg("exp2_coarse"), nb::arg("exp2_fine"), nb::arg("isa") = "", nb::arg("steps_at_once") = 256);
}

}  // namespace lmcodec
