// Random weights in the vector layout for the contracts of sparse linear, with the dense weight they stand for.
#pragma once

#include "contract.hpp"

#include "../../src/sparsewright/kernels/sparse_linear/problem.hpp"

namespace {

using namespace contract;
using sparsewright::LinearProblem;
using sparsewright::ValueType;

struct Shape {
    std::int64_t out, in;
};

// Half bits of any finite value, subnormal ones and zeros too, small enough to be summed up.
std::uint16_t random_half(Random &random) {
    const auto sign = static_cast<std::uint16_t>(random.below(2) << 15);
    const auto exponent = static_cast<std::uint16_t>(random.below(8) ? 8 + random.below(8) : 0);
    return static_cast<std::uint16_t>(sign | exponent << 10 | random.below(1024));
}

double half_value(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent ? (1.0 + mantissa / 1024.0) * __builtin_ldexp(1.0, exponent - 15)
                                      : mantissa * 0x1p-24;
    return bits >> 15 ? -magnitude : magnitude;
}

// What a row group keeps: nothing, everything, a share, or exactly `per_8` of every aligned eight columns.
void choose(Random &random, int per_8, int share_percent, std::int64_t in, bool *kept) {
    for (std::int64_t k = 0; k < in; ++k) kept[k] = random.below(100) < share_percent;
    for (std::int64_t k = 0; per_8 && k < in; k += 8) {
        for (std::int64_t i = k; i < k + 8; ++i) kept[i] = false;
        for (int chosen = 0; chosen < per_8;) {
            bool &one = kept[k + random.below(8)];
            chosen += !one;
            one = true;
        }
    }
}

struct Weight {
    std::int64_t out, in, blocks, block_columns, groups, count;
    int group, share, kept_per_8;
    ValueType type;
    Exact<std::uint8_t> index;
    Exact<std::int32_t> pointers;
    Exact<float> floats, scale;
    Exact<std::uint16_t> halves;
    Exact<std::int8_t> bytes;
    Exact<double> dense;  // (groups * group, in), scales included

    // The fields of a problem that tell of the weight.
    void fill(LinearProblem &p) const {
        p.in = in;
        p.out = out;
        p.values = type == ValueType::float16 ? static_cast<const void *>(halves.data())
                   : type == ValueType::int8  ? static_cast<const void *>(bytes.data())
                                              : floats.data();
        p.value_type = type;
        p.scale = type == ValueType::int8 ? scale.data() : nullptr;
        p.index = index.data();
        p.pointers = pointers.data();
        p.blocks = blocks;
        p.block_columns = block_columns;
        p.groups = groups;
        p.group = group;
        p.kept_per_8 = kept_per_8;
    }

    const char *type_name() const {
        return type == ValueType::float16 ? "half" : type == ValueType::int8 ? "int8" : "float";
    }
};

// Row group g keeps kept[g * in + k]; values are drawn.
inline Weight packed(Random &random, std::int64_t out, std::int64_t in, int group, ValueType type,
                     std::int64_t wanted_columns, const bool *kept) {
    const std::int64_t blocks = (in + wanted_columns - 1) / wanted_columns, even = (in + blocks - 1) / blocks;
    const std::int64_t columns = (even + 7) / 8 * 8, groups = (out + group - 1) / group;
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < groups * in; ++i) count += kept[i];
    const std::int64_t values = count * group;
    Weight w{out, in, blocks, columns, groups, count, group, 0, 0, type,
             {count, random}, {blocks * (groups + 1), random}, {type == ValueType::float32 ? values : 0, random},
             {type == ValueType::int8 ? groups * group : 0, random}, {type == ValueType::float16 ? values : 0, random},
             {type == ValueType::int8 ? values : 0, random}, {groups * group * in, random}};
    for (std::int64_t i = 0; i < w.scale.size(); ++i) w.scale[i] = 0.001f + 0.01f * static_cast<float>(random.unit());
    for (std::int64_t i = 0; i < w.dense.size(); ++i) w.dense[i] = 0;
    std::int64_t at = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
        for (std::int64_t g = 0; g < groups; ++g) {
            w.pointers[b * (groups + 1) + g] = static_cast<std::int32_t>(at);
            for (std::int64_t k = b * columns; k < (b + 1) * columns && k < in; ++k) {
                if (!kept[g * in + k]) continue;
                w.index[at] = static_cast<std::uint8_t>(k - b * columns);
                for (int r = 0; r < group; ++r) {
                    double &value = w.dense[(g * group + r) * in + k];
                    // Rows that only fill the last group up are zero.
                    const bool real = g * group + r < out;
                    if (type == ValueType::float16) {
                        w.halves[at * group + r] = real ? random_half(random) : 0;
                        value = half_value(w.halves[at * group + r]);
                    } else if (type == ValueType::int8) {
                        w.bytes[at * group + r] = static_cast<std::int8_t>(real ? random.below(255) - 127 : 0);
                        value = static_cast<double>(w.bytes[at * group + r]) * w.scale[g * group + r];
                    } else {
                        value = w.floats[at * group + r] = real ? random.signed_unit() : 0.0f;
                    }
                }
                ++at;
            }
        }
        w.pointers[b * (groups + 1) + groups] = static_cast<std::int32_t>(at);
    }
    return w;
}

inline Weight random_weight(Random &random) {
    const Shape shapes[] = {{1, 1},   {3, 5},    {50, 160},  {33, 257}, {17, 64}, {96, 72},
                            {5, 770}, {77, 307}, {130, 24}, {16, 1100}, {2, 3072}, {random.below(70) + 1, random.below(300) + 1}};
    auto [out, in] = random.one_of(shapes);
    const int group = random.one_of({1, 2, 4, 8, 16});
    const int per_8 = group == 1 && random.below(2) ? random.one_of({1, 2, 4}) : 0;
    if (per_8) in = (in + 7) / 8 * 8;
    const int share = random.one_of({0, 5, 12, 25, 50, 100});
    const ValueType type = random.one_of({ValueType::float32, ValueType::float16, ValueType::int8});
    const std::int64_t wanted = random.one_of({8, 24, 96, 128, 192, 256});
    const std::int64_t groups = (out + group - 1) / group;
    Exact<bool> kept(groups * in, random);
    bool regular = per_8 > 0;
    for (std::int64_t g = 0; g < groups; ++g) {
        const bool empty = !random.below(6);
        regular = regular && !empty;
        choose(random, empty ? 0 : per_8, empty ? 0 : share, in, kept.data() + g * in);
    }
    Weight w = packed(random, out, in, group, type, wanted, kept.data());
    w.share = share;
    w.kept_per_8 = regular && random.below(4) ? per_8 : 0;
    return w;
}

}  // namespace
