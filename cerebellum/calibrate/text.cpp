#include "cerebellum/calibrate/text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cerebellum/core/compressed_file.h"
#include "cerebellum/core/error.h"
#include "cerebellum/core/hash.h"
#include "cerebellum/core/json_text.h"
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

TextDemand domain_share(TextDemand demand, int domain, int n_domains) {
    const auto share = [&](int n) { return n * (domain + 1) / n_domains - n * domain / n_domains; };
    const int test = share(demand.test);
    return {demand.calibration / std::max(1, demand.test) * test, std::max(1, share(demand.selection)), test};
}

namespace {

/// Windows of one file, behind those that are there already. Returns the tokens of the text.
std::size_t cut_windows(const Model& model, const std::filesystem::path& file, int n_tokens, TokenWindows& windows) {
    const std::string text = read_text(file);
    if (std::ranges::all_of(text, [](unsigned char c) { return std::isspace(c); }))
        throw Error(fmt::format("{} holds no text; give a file with some pages of plain text", file.string()));
    const auto tokens = model.tokenize(text);
    const auto step = static_cast<std::size_t>(model.adds_bos() ? n_tokens - 1 : n_tokens);
    for (std::size_t begin = 0; begin + step <= tokens.size(); begin += step) {
        std::vector<Token> window;
        window.reserve(static_cast<std::size_t>(n_tokens));
        if (model.adds_bos()) window.push_back(model.first_token());
        window.insert(window.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                      tokens.begin() + static_cast<std::ptrdiff_t>(begin + step));
        windows.push_back(std::move(window));
    }
    return tokens.size();
}

void append(TextParts& all, TextParts more, const std::string& domain) {
    const auto move = [&](TokenWindows& to, std::vector<std::string>& labels, TokenWindows& from) {
        labels.insert(labels.end(), from.size(), domain);
        std::ranges::move(from, std::back_inserter(to));
    };
    move(all.calibration, all.calibration_domains, more.calibration);
    move(all.selection, all.selection_domains, more.selection);
    move(all.test, all.test_domains, more.test);
}

}  // namespace

TextParts windows_from_files(const Model& model, const std::vector<std::filesystem::path>& files, int n_tokens,
                             TextDemand demand, const std::vector<std::string>& domains) {
    struct Domain {
        std::string name;
        TokenWindows windows;
        std::vector<std::string> files;
        std::size_t n_text_tokens = 0;
    };
    std::vector<Domain> found;  // one without a name where nothing is labelled
    for (std::size_t i = 0; i < files.size(); ++i) {
        const std::string name = domains.empty() ? "" : domains[i];
        auto domain = std::ranges::find(found, name, &Domain::name);
        if (domain == found.end()) {
            found.push_back({name, {}, {}, 0});
            domain = found.end() - 1;
        }
        domain->n_text_tokens += cut_windows(model, files[i], n_tokens, domain->windows);
        domain->files.push_back(files[i].filename().string());
    }
    TextParts parts;
    std::vector<std::string> descriptions;
    for (std::size_t d = 0; d < found.size(); ++d) {
        auto& domain = found[d];
        const auto names = fmt::format("{}", fmt::join(domain.files, ", "));
        if (domain.windows.size() < 3)
            throw Error(fmt::format(
                "the text is too short: {} tokens in {}, but three windows of {} are the least; give more text "
                "or a smaller --ctx",
                domain.n_text_tokens, names, n_tokens));
        descriptions.push_back(domain.name.empty() ? names : fmt::format("{}: {}", domain.name, names));
        if (domains.empty()) {
            parts = deal_windows(std::move(domain.windows), demand);
            continue;
        }
        const auto share = domain_share(demand, static_cast<int>(d), static_cast<int>(found.size()));
        if (share.test < 2)
            throw UsageError(fmt::format(
                "--tokens gives {} windows of {} tokens to {} domains; two for each are the least: raise --tokens or "
                "lower --ctx",
                demand.test, n_tokens, found.size()));
        append(parts, deal_windows(std::move(domain.windows), share), domain.name);
    }
    parts.description = fmt::format("{}", fmt::join(descriptions, "; "));
    return parts;
}

TextParts windows_from_model(const Model& model, int n_tokens, TextDemand demand, std::uint64_t seed, int threads,
                             Progress& progress) {
    auto parts = deal_windows(sample_sequences(model, demand.total(), n_tokens, seed, threads, progress), demand);
    parts.description = fmt::format("self-sampled, seed {}", seed);
    return parts;
}

std::string serialize(const TextParts& parts) {
    nlohmann::json json = {{"calibration", parts.calibration},
                           {"selection", parts.selection},
                           {"test", parts.test},
                           {"description", parts.description}};
    if (!parts.calibration_domains.empty())
        json["domains"] =
            nlohmann::json::array({parts.calibration_domains, parts.selection_domains, parts.test_domains});
    const auto bytes = nlohmann::json::to_cbor(json);
    return {bytes.begin(), bytes.end()};
}

namespace {

void check_domains(const TextParts& parts) {
    for (const auto& [windows, domains] :
         {std::pair(&parts.calibration, &parts.calibration_domains),
          std::pair(&parts.selection, &parts.selection_domains), std::pair(&parts.test, &parts.test_domains)})
        if (!domains->empty() && domains->size() != windows->size())
            throw Error("the stored text is damaged: it has other domains than windows");
}

}  // namespace

void check_windows(const TextParts& parts, int n_tokens, int n_vocab) {
    for (const auto* windows : {&parts.calibration, &parts.selection, &parts.test}) {
        if (windows->empty()) throw Error("the stored text is damaged: a part of it is empty");
        for (const auto& window : *windows) {
            if (window.size() != static_cast<std::size_t>(n_tokens))
                throw Error(fmt::format("the stored text is damaged: it has a window of {} tokens and not of {}",
                                        window.size(), n_tokens));
            for (const auto token : window)
                if (token < 0 || token >= n_vocab)
                    throw Error(fmt::format("the stored text is damaged: the token {} is none of the model's", token));
        }
    }
}

TextParts deserialize_text_parts(std::string_view bytes) {
    try {
        const auto json = parse_cbor(bytes, "the text in the journal");
        TextParts parts;
        json.at("calibration").get_to(parts.calibration);
        json.at("selection").get_to(parts.selection);
        json.at("test").get_to(parts.test);
        json.at("description").get_to(parts.description);
        if (const auto domains = json.find("domains"); domains != json.end()) {
            domains->at(0).get_to(parts.calibration_domains);
            domains->at(1).get_to(parts.selection_domains);
            domains->at(2).get_to(parts.test_domains);
        }
        check_domains(parts);
        return parts;
    } catch (const nlohmann::json::exception& error) {
        throw Error(fmt::format("the stored text is damaged: {}", json_problem(error)));
    }
}

}  // namespace cerebellum
