// Maps that refine a probability by what else is known: rows of cells over its stretch, read by interpolation.
// FORMAT.md section 5.7.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "logistic.h"
#include "table_memory.h"

namespace lmcodec {

constexpr int kMapCells = 25;  // of a row: one every 256 of stretch, -3072 to 3072

// Where a stretch lies among the cells of a row.
struct MapPlace {
  std::uint32_t cell, part;  // part: 0 to 256 of the way to the next cell

  explicit MapPlace(std::int32_t stretch) {
    const std::uint32_t place = static_cast<std::uint32_t>(stretch + kStretchMax);
    cell = std::min(place >> 8, static_cast<std::uint32_t>(kMapCells - 2));
    part = place - (cell << 8);
  }
  // 16 bits, from the cell and the one after it.
  std::uint32_t read(const std::uint16_t* cells) const { return (cells[0] * (256 - part) + cells[1] * part) >> 8; }
  int nearer() const { return part >= 128 ? 1 : 0; }
};

// What the cells of a row begin with: the probability that they refine.
inline std::uint16_t identity_cell(std::size_t cell) {
  return static_cast<std::uint16_t>(logistic().squash((static_cast<int>(cell) - kMapCells / 2) * 256));
}

inline void fill_identity(Table<std::uint16_t>& cells, std::size_t n_row) {
  cells.resize(n_row * kMapCells);
  for (std::size_t i = 0; i < kMapCells; ++i) cells[i] = identity_cell(i);
  for (std::size_t done = kMapCells; done < cells.size();) {
    const std::size_t n = std::min(done, cells.size() - done);
    std::copy_n(cells.data(), n, cells.data() + done);
    done += n;
  }
}

inline void train_cell(std::uint16_t& cell, int bit, int rate) {
  // Rounded away from where it is, either way, so that certainty is reached.
  const std::int32_t up = bit ? 65535 + (1 << rate) - 1 : 0;
  cell = static_cast<std::uint16_t>(cell + ((up - cell) >> rate));
}

}  // namespace lmcodec
