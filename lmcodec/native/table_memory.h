// Memory of large tables, in huge pages where the system has them: a random line of it then costs no walk through the
// system's own tables of pages.
#pragma once

#include <cstddef>
#include <vector>

namespace lmcodec {

// nbytes at the start of a cache line. Throws std::bad_alloc.
void* new_table(std::size_t nbytes);
void delete_table(void* table, std::size_t nbytes) noexcept;

template <typename T>
struct TableAllocator {
  using value_type = T;

  TableAllocator() = default;
  template <typename U>
  TableAllocator(const TableAllocator<U>&) {}

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

}  // namespace lmcodec
