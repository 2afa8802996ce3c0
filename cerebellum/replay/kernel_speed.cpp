#include "cerebellum/replay/kernel_speed.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>

#include "cerebellum/core/error.h"
#include "cerebellum/core/ggml_device.h"
#include "cerebellum/replay/device.h"

namespace cerebellum {

namespace {

constexpr std::int64_t size = 4096;
constexpr int products = 4;  // in one graph, so that starting it does not count
constexpr int tries = 4;

KernelSpeed measure(ggml_backend_dev_t device, ggml_backend* backend, ggml_type type) {
    KernelSpeed result{type, false, 0.0};
    const auto context = make_tensor_context(2 + products, 2 * products + 8);
    auto* weights = ggml_new_tensor_2d(context.get(), type, size, size);
    auto* vector = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, size);
    auto* graph = ggml_new_graph_custom(context.get(), 2 * products + 4, false);
    for (int i = 0; i < products; ++i) {
        auto* product = ggml_mul_mat(context.get(), weights, vector);
        if (!ggml_backend_dev_supports_op(device, product)) return result;
        ggml_build_forward_expand(graph, product);
    }
    const GgmlBuffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    if (!buffer) return result;
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_buffer_clear(buffer.get(), 0);  // every type reads zero bytes as finite weights
    result.seconds = std::numeric_limits<double>::infinity();
    for (int i = 0; i <= tries; ++i) {
        const auto start = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) return result;
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        if (i > 0) result.seconds = std::min(result.seconds, taken.count() / products);
    }
    result.supported = true;
    return result;
}

}  // namespace

std::vector<KernelSpeed> measure_kernels(const std::string& name, int threads, std::span<const ggml_type> types) {
    auto* device = find_device(name);
    const std::unique_ptr<ggml_backend, void (*)(ggml_backend*)> backend(ggml_backend_dev_init(device, nullptr),
                                                                         ggml_backend_free);
    if (!backend) throw Error("the device " + name + " cannot be used; is it taken by another program?");
    if (ggml_backend_is_cpu(backend.get())) ggml_backend_cpu_set_n_threads(backend.get(), threads);
    std::vector<KernelSpeed> speeds;
    for (const auto type : types) speeds.push_back(measure(device, backend.get(), type));
    return speeds;
}

std::vector<ggml_type> fast_types(std::span<const KernelSpeed> speeds) {
    constexpr double tolerance = 1.1;
    const auto plain = std::ranges::find(speeds, GGML_TYPE_Q8_0, &KernelSpeed::type);
    std::vector<ggml_type> fast;
    for (const auto& speed : speeds)
        if (speed.supported &&
            (plain == speeds.end() || !plain->supported || speed.seconds <= tolerance * plain->seconds))
            fast.push_back(speed.type);
    return fast;
}

}  // namespace cerebellum
