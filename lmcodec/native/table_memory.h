// Memory of large tables, in huge pages where the system has them: a random line of it then costs no walk through the
// system's own tables of pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace lmcodec {

// A huge page is zeroed as a whole when its first line is touched: two megabytes. Where a table is much larger than what
// will be written to it for now, ordinary pages are ready a hundred times sooner.
enum class Pages : std::uint8_t { kHuge, kOrdinary };

// nbytes of zeros at the start of a cache line. Throws std::bad_alloc.
void* new_table(std::size_t nbytes);
// Before anything of that table is touched: in which pages it comes.
void use_pages(void* table, std::size_t nbytes, Pages pages) noexcept;
void delete_table(void* table, std::size_t nbytes) noexcept;
// What one of nbytes takes of the machine's memory: where it lies in huge pages, whole ones.
std::size_t new_table_nbytes(std::size_t nbytes);

template <typename T>
struct TableAllocator {
  using value_type = T;

  TableAllocator() = default;
  template <typename U>
  TableAllocator(const TableAllocator<U>&) {}

  // All zeros already: what nobody writes to, nobody has to wait for.
  template <typename U>
  void construct(U*) {
    static_assert(std::is_trivially_copyable<U>::value, "zeros are a value");
  }
  template <typename U, typename... Args>
  void construct(U* place, Args&&... args) {
    ::new (static_cast<void*>(place)) U(std::forward<Args>(args)...);
  }

  T* allocate(std::size_t n) { return static_cast<T*>(new_table(n * sizeof(T))); }
  void deallocate(T* table, std::size_t n) noexcept { delete_table(table, n * sizeof(T)); }

  template <typename U>
  bool operator==(const TableAllocator<U>&) const {
    return true;
  }
  template <typename U>
  bool operator!=(const TableAllocator<U>&) const {
    return false;
  }
};

template <typename T>
using Table = std::vector<T, TableAllocator<T>>;

// What a table of n takes of the machine's memory.
template <typename T>
std::size_t table_nbytes(std::size_t n) {
  return new_table_nbytes(n * sizeof(T));
}

// n zeros. The table that was there goes first: both at once might be too much.
template <typename T>
void clear_table(Table<T>& table, std::size_t n, Pages pages = Pages::kHuge) {
  Table<T>().swap(table);
  Table<T>(n).swap(table);
  if (pages != Pages::kHuge) use_pages(table.data(), n * sizeof(T), pages);
}

}  // namespace lmcodec
