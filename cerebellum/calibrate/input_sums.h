#pragma once

#include <ggml-backend.h>

#include <memory>
#include <vector>

namespace cerebellum {

// Sums over the inputs of matrix products, made where the inputs are, so that no activations leave a device.

/// Σ x² over the rows of activations [n, rows, i2, i3] in F32, by column: [1, n, i2, i3]. Nodes for any backend.
ggml_tensor* squared_sum_nodes(ggml_context* context, ggml_tensor* activations);

/// Σ x xᵀ over all rows of activations [n, ...] in F32: [n, n]. Nodes for any backend. Products of F32 may be rounded
/// to 11 bits on a device (NVIDIA's TF32): inputs go there as a sum of two, so that about 19 bits count.
ggml_tensor* outer_product_nodes(ggml_context* context, ggml_tensor* activations);

/// Makes squared_sum_nodes() of tensors in a device's memory, one at a time, between the nodes of somebody else's
/// graph. Not thread-safe.
class SquaredSums {
  public:
    SquaredSums();
    ~SquaredSums();
    SquaredSums(const SquaredSums&) = delete;
    SquaredSums& operator=(const SquaredSums&) = delete;

    /// Of activations that have been computed, in F32: [n, i2, i3]. Throws Error where the device cannot make them.
    std::vector<float> of(const ggml_tensor& activations);

  private:
    struct Graph;
    std::vector<std::unique_ptr<Graph>> graphs_;  // by shape and device
    struct Backends;
    std::unique_ptr<Backends> backends_;
};

}  // namespace cerebellum
