#include "cerebellum/calibrate/input_sums.h"

#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "cerebellum/core/error.h"
#include "cerebellum/replay/device.h"

namespace cerebellum {

namespace {

struct BackendFree {
    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
};

/// Rows to columns, one behind the other.
ggml_tensor* transposed(ggml_context* context, ggml_tensor* tensor) {
    return ggml_cont(context, ggml_transpose(context, tensor));
}

}  // namespace

ggml_tensor* squared_sum_nodes(ggml_context* context, ggml_tensor* activations) {
    return ggml_sum_rows(context, ggml_sqr(context, transposed(context, activations)));
}

ggml_tensor* outer_product_nodes(ggml_context* context, ggml_tensor* activations) {
    const auto n = activations->ne[0];
    if (!ggml_is_contiguous(activations)) activations = ggml_cont(context, activations);
    auto* rows = ggml_reshape_2d(context, activations, n, ggml_nelements(activations) / n);
    auto* x = transposed(context, rows);
    auto* high = ggml_cast(context, ggml_cast(context, x, GGML_TYPE_BF16), GGML_TYPE_F32);
    auto* low = ggml_sub(context, x, high);
    const auto product = [&](ggml_tensor* a, ggml_tensor* b) {
        auto* result = ggml_mul_mat(context, a, b);
        ggml_prec_set_acc(result, GGML_PREC_F32);
        return result;
    };
    // (high + low)ᵀ (high + low), its two mixed terms being each other's transpose.
    auto* sum = product(x, low);
    sum = ggml_add_inplace(context, sum, product(low, high));
    return ggml_add_inplace(context, sum, product(high, high));
}

struct SquaredSums::Backends {
    std::map<ggml_backend_dev_t, std::unique_ptr<ggml_backend, BackendFree>> of_device;
};

struct SquaredSums::Graph {
    ggml_backend* backend = nullptr;
    GgmlContext context;
    GgmlBuffer buffer;
    ggml_cgraph* graph = nullptr;
    ggml_tensor* input = nullptr;
    ggml_tensor* sums = nullptr;

    bool is_for(const ggml_tensor& activations, const ggml_backend* on) const {
        return backend == on && std::ranges::equal(input->ne, activations.ne) &&
               std::ranges::equal(input->nb, activations.nb);
    }
};

SquaredSums::SquaredSums() : backends_(std::make_unique<Backends>()) {}
SquaredSums::~SquaredSums() {
    graphs_.clear();  // before their backends
}

std::vector<float> SquaredSums::of(const ggml_tensor& activations) {
    auto* const memory = activations.view_src != nullptr ? activations.view_src->buffer : activations.buffer;
    auto* device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(memory));
    if (device == nullptr) device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);  // host memory has none
    auto& backend = backends_->of_device[device];
    if (!backend) backend.reset(ggml_backend_dev_init(device, nullptr));
    const auto fail = [&](const char* what) {
        throw Error(fmt::format("{} {} for sums of {}; use --device CPU", ggml_backend_dev_name(device), what,
                                activations.name));
    };
    if (!backend) fail("cannot be used");
    auto known = std::ranges::find_if(graphs_, [&](const auto& g) { return g->is_for(activations, backend.get()); });
    if (known == graphs_.end()) {
        auto made = std::make_unique<Graph>();
        made->backend = backend.get();
        constexpr std::size_t n_tensors = 8;
        made->context = make_tensor_context(n_tensors, n_tensors);
        made->input = ggml_new_tensor(made->context.get(), GGML_TYPE_F32, GGML_MAX_DIMS, activations.ne);
        std::ranges::copy(activations.nb, made->input->nb);
        made->input->buffer = memory;
        made->input->data = activations.data;
        made->sums = squared_sum_nodes(made->context.get(), made->input);
        made->graph = ggml_new_graph_custom(made->context.get(), n_tensors, false);
        ggml_build_forward_expand(made->graph, made->sums);
        made->buffer.reset(ggml_backend_alloc_ctx_tensors(made->context.get(), backend.get()));
        if (!made->buffer) fail("has not enough memory");
        graphs_.push_back(std::move(made));
        known = std::prev(graphs_.end());
    }
    auto& graph = **known;
    graph.input->buffer = memory;
    graph.input->data = activations.data;
    for (auto* tensor = ggml_get_first_tensor(graph.context.get()); tensor != nullptr;
         tensor = ggml_get_next_tensor(graph.context.get(), tensor))
        if (tensor->view_src == graph.input) {
            tensor->buffer = memory;
            tensor->data = static_cast<char*>(activations.data) + tensor->view_offs;
        }
    if (ggml_backend_graph_compute(backend.get(), graph.graph) != GGML_STATUS_SUCCESS) fail("failed");
    std::vector<float> result(static_cast<std::size_t>(ggml_nelements(graph.sums)));
    ggml_backend_tensor_get(graph.sums, result.data(), 0, result.size() * sizeof(float));
    return result;
}

}  // namespace cerebellum
