#include "cerebellum/calibrate/text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/llama/sampler.h"

namespace cerebellum {

std::string TextParts::fingerprint() const {
    Sha256 hash;
    for (const auto* part : {&calibration, &selection, &test}) {
        hash.update(fmt::format("{} windows;", part->size()));
        for (const auto& window : *part) hash.update(std::as_bytes(std::span(window)));
    }
    return hash.finish();
}

TextParts deal_windows(TokenWindows windows, TextDemand demand) {
    const auto available = static_cast<int>(windows.size());
    if (available < demand.total()) {
        const double scale = static_cast<double>(available) / demand.total();
        const auto shrink = [&](int n) { return std::max(1, static_cast<int>(n * scale)); };
        demand.selection = shrink(demand.selection);
        demand.test = shrink(demand.test);
        demand.calibration = std::max(1, available - demand.selection - demand.test);
    }
    // Evenly spread windows, dealt so that at every point each part has its proportional share (largest remainder).
    TextParts parts;
    struct Share {
        TokenWindows* part;
        int wanted;
        int dealt;
    };
    Share shares[] = {{&parts.calibration, demand.calibration, 0},
                      {&parts.selection, demand.selection, 0},
                      {&parts.test, demand.test, 0}};
    const int total = demand.total();
    for (int i = 0; i < total; ++i) {
        const auto source = static_cast<std::size_t>(static_cast<std::int64_t>(i) * available / total);
        auto* due = &shares[0];
        double largest = -1.0;
        for (auto& share : shares) {
            const double lag = static_cast<double>(share.wanted) * (i + 1) / total - share.dealt;
            if (share.dealt < share.wanted && lag > largest) {
                largest = lag;
                due = &share;
            }
        }
        due->part->push_back(std::move(windows[source]));
        ++due->dealt;
    }
    return parts;
}

TextParts windows_from_files(const Model& model, const std::vector<std::filesystem::path>& files, int n_tokens,
                             TextDemand demand) {
    TokenWindows windows;
    std::vector<std::string> names;
    std::size_t n_text_tokens = 0;
    for (const auto& file : files) {
        const std::string text = read_file(file);
        if (std::ranges::all_of(text, [](unsigned char c) { return std::isspace(c); }))
            throw Error(fmt::format("{} holds no text; give a file with some pages of plain text", file.string()));
        const auto tokens = model.tokenize(text);
        n_text_tokens += tokens.size();
        const auto step = static_cast<std::size_t>(model.adds_bos() ? n_tokens - 1 : n_tokens);
        for (std::size_t begin = 0; begin + step <= tokens.size(); begin += step) {
            std::vector<Token> window;
            window.reserve(static_cast<std::size_t>(n_tokens));
            if (model.adds_bos()) window.push_back(model.first_token());
            window.insert(window.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                          tokens.begin() + static_cast<std::ptrdiff_t>(begin + step));
            windows.push_back(std::move(window));
        }
        names.push_back(file.filename().string());
    }
    if (windows.size() < 3)
        throw Error(
            fmt::format("the text is too short: {} tokens in {}, but three windows of {} are the least; give more text "
                        "or a smaller --ctx",
                        n_text_tokens, fmt::join(names, ", "), n_tokens));
    auto parts = deal_windows(std::move(windows), demand);
    parts.description = fmt::format("{}", fmt::join(names, ", "));
    return parts;
}

TextParts windows_from_model(const Model& model, int n_tokens, TextDemand demand, std::uint64_t seed, int threads,
                             Progress& progress) {
    auto parts = deal_windows(sample_sequences(model, demand.total(), n_tokens, seed, threads, progress), demand);
    parts.description = fmt::format("self-sampled, seed {}", seed);
    return parts;
}

std::string serialize(const TextParts& parts) {
    const nlohmann::json json = {{"calibration", parts.calibration},
                                 {"selection", parts.selection},
                                 {"test", parts.test},
                                 {"description", parts.description}};
    const auto bytes = nlohmann::json::to_cbor(json);
    return {bytes.begin(), bytes.end()};
}

TextParts deserialize_text_parts(std::string_view bytes) {
    try {
        const auto json = nlohmann::json::from_cbor(bytes.begin(), bytes.end());
        TextParts parts;
        json.at("calibration").get_to(parts.calibration);
        json.at("selection").get_to(parts.selection);
        json.at("test").get_to(parts.test);
        json.at("description").get_to(parts.description);
        return parts;
    } catch (const nlohmann::json::exception& error) {
        throw Error(fmt::format("the stored text is damaged: {}", error.what()));
    }
}

}  // namespace cerebellum
