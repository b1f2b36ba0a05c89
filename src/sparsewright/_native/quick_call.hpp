// A call of a kernel on torch tensors without Python on the way: between layers whose weights fill the caches, every
// Python function costs several times what it costs in a tight loop, and small batches are over in 20 microseconds.
//
// Tensors are read through torch's DLPack exchange functions (dlpack.h 1.3), so this builds without torch.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace sparsewright {

// What a kernel needs beside the weight: y (tokens, out) contiguous from x (tokens, in), rows `x_stride` floats apart.
struct LinearCall {
    const float *x;
    std::int64_t x_stride;
    std::int64_t tokens;
    const float *bias;  // or null
    float *y;
    int kernel;
    int threads;
    int activation;
};

// The problem of a weight with what one call brings.
template <class Problem> Problem with_call(Problem problem, const LinearCall &call) {
    problem.x = call.x;
    problem.x_stride = call.x_stride;
    problem.tokens = call.tokens;
    problem.bias = call.bias;
    problem.y = call.y;
    problem.threads = call.threads;
    problem.activation = call.activation;
    return problem;
}

// y of one packed weight, wherever nothing but the kernel has to see the call.
class QuickCall {
  public:
    // `plan(tokens)` gives (kernel, threads); it is asked again when the pool of threads or the choice of kernels changes.
    // `planes`: the tensors of the weight, whose addresses `owner` holds.
    QuickCall(std::function<void(const LinearCall &)> run, nanobind::object owner, nanobind::list planes,
              nanobind::object plan, std::int64_t out, std::int64_t in);

    // y (..., out), or None where the call must go the long way: gradients, autocast, tracers, dispatch modes, functorch
    // and subclasses want to see it; tensors that do not fit are told of there, and a weight whose tensors have moved or
    // were written to is looked at again.
    nanobind::object operator()(nanobind::handle x, nanobind::handle bias, int activation);

    // Whether the tensors of the weight lie where they lay, and were not written to since.
    bool planes_stand() const;

  private:
    struct Plan {
        std::int64_t tokens = -1;
        int kernel = 0, threads = 1, pool = 0;
        std::uint64_t choice = 0;
    };
    struct Plane {
        nanobind::object tensor;
        const void *data;
        std::int64_t version;
    };
    const Plan &plan_for(std::int64_t tokens);
    std::function<void(const LinearCall &)> run_;
    nanobind::object owner_, plan_;
    std::vector<Plane> planes_;
    std::int64_t out_, in_;
    Plan plans_[8];
};

// The same for an operand of Python's, which it keeps alive.
template <class Operand>
QuickCall quick_call(nanobind::handle_t<Operand> operand, nanobind::list planes, nanobind::object plan,
                     std::int64_t out, std::int64_t in) {
    const Operand *of = nanobind::cast<const Operand *>(operand);
    return {[of](const LinearCall &call) { of->run(call); }, nanobind::borrow(operand), std::move(planes),
            std::move(plan), out, in};
}

void add_quick_call(nanobind::module_ &m);

}  // namespace sparsewright
