#include "table_memory.h"

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lmcodec {
namespace {

constexpr std::align_val_t kLine{64};

#if defined(__linux__) && defined(MADV_HUGEPAGE)
constexpr std::size_t kHuge = std::size_t{1} << 21;
constexpr std::size_t kPage = std::size_t{1} << 16;  // the largest of Linux's ordinary pages

std::size_t rounded_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

// Bytes in huge pages: the last one is taken where more than half of it is needed.
std::size_t huge_nbytes(std::size_t nbytes) { return (nbytes + kHuge / 2 - 1) / kHuge * kHuge; }

std::size_t mapped_nbytes(std::size_t nbytes) {
  const std::size_t huge = huge_nbytes(nbytes), ordinary = rounded_up(nbytes, kPage);
  return huge > ordinary ? huge : ordinary;
}

void* new_huge(std::size_t nbytes) {
  const std::size_t size = mapped_nbytes(nbytes);
  void* const mapped = mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  // What lies before the first border of a huge page, and after the table, goes back.
  char* const begin = static_cast<char*>(mapped);
  const std::size_t before = rounded_up(reinterpret_cast<std::uintptr_t>(begin), kHuge) - reinterpret_cast<std::uintptr_t>(begin);
  if (before) munmap(begin, before);
  if (before < kHuge) munmap(begin + before + size, kHuge - before);
  use_pages(begin + before, nbytes, Pages::kHuge);
  return begin + before;
}
#else
std::size_t huge_nbytes(std::size_t) { return 0; }
std::size_t mapped_nbytes(std::size_t nbytes) { return nbytes; }
void* new_huge(std::size_t) { return nullptr; }
#endif

}  // namespace

void* new_table(std::size_t nbytes) {
  if (huge_nbytes(nbytes)) return new_huge(nbytes);
  return std::memset(::operator new(nbytes, kLine), 0, nbytes);
}

// A wish: the others do as well.
void use_pages(void* table, std::size_t nbytes, Pages pages) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge_nbytes(nbytes)) madvise(table, huge_nbytes(nbytes), pages == Pages::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)table, (void)nbytes, (void)pages;
#endif
}

void delete_table(void* table, std::size_t nbytes) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge_nbytes(nbytes)) {
    munmap(table, mapped_nbytes(nbytes));
    return;
  }
#endif
  (void)nbytes;
  ::operator delete(table, kLine);
}

std::size_t new_table_nbytes(std::size_t nbytes) { return huge_nbytes(nbytes) ? mapped_nbytes(nbytes) : nbytes; }

}  // namespace lmcodec
