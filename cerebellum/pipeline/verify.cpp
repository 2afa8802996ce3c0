#include "cerebellum/pipeline/verify.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "cerebellum/core/digest_memory.h"
#include "cerebellum/evaluate/built_file.h"
#include "cerebellum/gguf/inspection.h"
#include "cerebellum/pipeline/allocation.h"

namespace cerebellum {

namespace {

void predict(Session& session, const std::vector<GgufFile>& opened, std::vector<VerifiedFile>& files) {
    if (session.journal().measurements().empty()) return;
    const auto problem = make_problem(session.source(), session.journal(), std::nullopt);
    const auto calibration = make_calibration(problem, session.journal());
    for (std::size_t i = 0; i < files.size(); ++i) {
        TypeMap types;
        for (const auto& tensor : opened[i].tensors()) types[tensor.name] = tensor.type;
        files[i].prediction = predict_whole(problem, calibration, types);
    }
}

}  // namespace

std::vector<VerifiedFile> verify_files(Session& session, const std::vector<std::filesystem::path>& files,
                                       Progress& progress) {
    std::vector<GgufFile> opened;
    for (const auto& file : files) opened.push_back(GgufFile::open(file));
    const auto scores =
        score_files(session.model(), files, session.text().test, session.threads(), progress, session.place());
    std::vector<VerifiedFile> verified;
    for (std::size_t i = 0; i < files.size(); ++i)
        verified.push_back({files[i],
                            opened[i].file_size(),
                            bits_per_weight(opened[i].file_size(), opened[i].n_weights()),
                            content_sha256(opened[i].paths(), progress),
                            session.source().fingerprint(),
                            summarize(scores[i]),
                            {}});
    predict(session, opened, verified);
    return verified;
}

nlohmann::json to_json(const std::vector<VerifiedFile>& files) {
    auto json = nlohmann::json::array();
    for (const auto& file : files) {
        const auto& f = file.figures;
        json.push_back({{"file", file.path.string()},
                        {"bytes", file.bytes},
                        {"sha256", file.sha256},
                        {"source_fingerprint", file.source_fingerprint},
                        {"bpw", file.bpw},
                        {"kld", f.kld.mean},
                        {"kld_error", f.kld.error},
                        {"perplexity", f.perplexity},
                        {"perplexity_error", f.perplexity_error},
                        {"delta_nll", f.delta_nll.mean},
                        {"delta_nll_error", f.delta_nll.error},
                        {"top1_agree", f.top1_agree.mean},
                        {"tokens", f.tokens}});
        if (!file.prediction) continue;
        json.back()["predicted_kld"] = file.prediction->sum;
        if (std::isfinite(file.prediction->calibrated.error)) {
            json.back()["calibrated_kld"] = file.prediction->calibrated.mean;
            json.back()["calibrated_kld_error"] = file.prediction->calibrated.error;
        }
    }
    return json;
}

}  // namespace cerebellum
