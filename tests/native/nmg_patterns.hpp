// What the contracts of n:m:g share.
#pragma once

#include <algorithm>
#include <vector>

// Patterns of n of m rows in an order in which neighbours differ in one row, as (patterns, n) bytes.
inline std::vector<std::vector<int>> patterns_of(int n, int m, bool turned = false) {
    if (n == 0 || n == m) {
        std::vector<int> all(n);
        for (int i = 0; i < n; ++i) all[i] = i;
        return {all};
    }
    auto order = patterns_of(n, m - 1, true);
    if (turned) std::reverse(order.begin(), order.end());
    for (auto each : patterns_of(n - 1, m - 1, !turned)) {
        each.push_back(m - 1);
        order.push_back(each);
    }
    return order;
}
