// What the contract programs share: numbers drawn from a seed, memory that ends where its contents end, and one list of
// checks. A new kernel brings a file `<folder>_<file>_contract.cpp` beside this one, with one `Check` at its end; nothing else
// changes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#define CONTRACT_JOIN_(a, b) a##b
#define CONTRACT_JOIN(a, b) CONTRACT_JOIN_(a, b)

namespace contract {

// splitmix64.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    // 0 .. below - 1.
    std::int64_t below(std::int64_t limit) { return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(limit)); }
    // -1 .. 1.
    float signed_unit() { return static_cast<float>(static_cast<std::int32_t>(bits() >> 32)) * 0x1p-31f; }
    double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    template <class T, std::size_t count> T one_of(const T (&choices)[count]) { return choices[below(count)]; }

  private:
    std::uint64_t state_;
};

// `count` elements directly before the end of their allocation, so that the address sanitizer sees a read or a write of
// one byte more. They start at the front or a few elements behind it, since kernels promise no alignment of their own.
template <class T> class Exact {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    Exact(std::int64_t count, Random &random) : count_(count), shift_(random.below(2) ? 0 : random.below(4)) {
        memory_ = static_cast<T *>(std::malloc(static_cast<std::size_t>(shift_ + count) * sizeof(T)));
        if (!memory_ && shift_ + count) std::abort();
        if (count) std::memset(static_cast<void *>(data()), 0xff, static_cast<std::size_t>(count) * sizeof(T));
    }
    Exact(Exact &&other) : memory_(other.memory_), count_(other.count_), shift_(other.shift_) { other.memory_ = nullptr; }
    Exact(const Exact &) = delete;
    Exact &operator=(const Exact &) = delete;
    ~Exact() { std::free(memory_); }

    T *data() { return memory_ + shift_; }
    const T *data() const { return memory_ + shift_; }
    std::int64_t size() const { return count_; }
    T &operator[](std::int64_t i) { return data()[i]; }
    const T &operator[](std::int64_t i) const { return data()[i]; }

  private:
    T *memory_;
    std::int64_t count_, shift_;
};

// How a run goes: what was compared and what was wrong.
struct Tally {
    long calls = 0, failures = 0;

    // Prints the first failures only; every one counts.
    bool expect(bool holds, const char *kernel, const char *case_name, std::int64_t at, double got, double wanted) {
        if (holds) return true;
        if (++failures <= 20)
            std::printf("FAILED %s %s: element %lld is %.9g, not %.9g\n", kernel, case_name, static_cast<long long>(at),
                        got, wanted);
        return false;
    }
};

// A kernel's check: `run` draws one problem and tries it.
struct Check {
    const char *name;
    void (*run)(Random &random, Tally &tally);
    Check *next;

    Check(const char *kernel, void (*one)(Random &, Tally &)) : name(kernel), run(one), next(first) { first = this; }
    static inline Check *first = nullptr;
};

}  // namespace contract
