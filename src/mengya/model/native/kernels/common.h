// What all kernels of this folder need.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace {

using bf16 = uint16_t;

// Scratch memory of a thread, kept between calls: fresh pages cost more than the arithmetic.
class Arena {
    char* base_ = nullptr;
    size_t size_ = 0, used_ = 0;

  public:
    ~Arena() { std::free(base_); }
    void reset(size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        std::free(base_);
        size_ = (bytes + 4095) / 4096 * 4096;
        base_ = static_cast<char*>(std::aligned_alloc(4096, size_));
        if (!base_) std::abort();
    }
    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(base_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64 + 192;  // the gap keeps arrays off each other's cache sets
        if (used_ > size_) std::abort();
        return p;
    }
};
thread_local Arena arena;

}  // namespace
