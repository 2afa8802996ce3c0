#include "cerebellum/evaluate/speed.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "cerebellum/llama/batch_decoder.h"

namespace cerebellum {

namespace {

constexpr int batch_tokens = 2048;  // llama-bench's

/// A file with its context and tokens to feed it. What a token is does not matter to the time it takes.
class Runner {
  public:
    Runner(const std::filesystem::path& file, const SpeedSettings& settings)
        : settings_(settings),
          model_(Model::load_to_run(file, settings.place)),
          decoder_(model_, decoder_settings(settings)) {}

    double prompt_seconds() {
        prepare(1);
        const auto begun = std::chrono::steady_clock::now();
        feed(0, settings_.context, settings_.prompt_tokens, true);
        return seconds_since(begun);
    }
    double generation_seconds(int n_tokens) {
        prepare(settings_.parallel);
        const auto begun = std::chrono::steady_clock::now();
        for (int i = 0; i < n_tokens; ++i) {
            std::vector<BatchToken> step;
            for (int s = 0; s < settings_.parallel; ++s)
                step.push_back({any_token(), settings_.context + i, {s}, true});
            decoder_.decode(step);
        }
        return seconds_since(begun);
    }

  private:
    using Clock = std::chrono::steady_clock;
    static double seconds_since(Clock::time_point begun) {
        return std::chrono::duration<double>(Clock::now() - begun).count();
    }
    static BatchDecoderSettings decoder_settings(const SpeedSettings& settings) {
        BatchDecoderSettings result;
        result.n_sequences = settings.parallel;
        result.cache_tokens =
            settings.parallel * (settings.context + std::max(settings.prompt_tokens, settings.generated_tokens));
        result.batch_tokens = std::max(batch_tokens, settings.parallel);
        result.threads = settings.threads;
        result.cache_type = settings.cache_type;
        return result;
    }
    Token any_token() { return static_cast<Token>(random_() % static_cast<unsigned>(model_.n_vocab())); }

    void feed(int sequence, int begin, int count, bool logits_at_the_end) {
        for (int done = 0; done < count;) {
            const int now = std::min(batch_tokens, count - done);
            std::vector<BatchToken> tokens;
            for (int i = 0; i < now; ++i)
                tokens.push_back(
                    {any_token(), begin + done + i, {sequence}, logits_at_the_end && done + i + 1 == count});
            decoder_.decode(tokens);
            done += now;
        }
    }
    void prepare(int n_sequences) {
        decoder_.forget();
        for (int s = 0; s < n_sequences; ++s) feed(s, 0, settings_.context, false);
    }

    SpeedSettings settings_;
    Model model_;
    BatchDecoder decoder_;
    std::mt19937 random_{1};
};

}  // namespace

Spread spread_of(std::vector<double> figures) {
    if (figures.empty()) return {};
    std::ranges::sort(figures);
    const auto n = figures.size();
    Spread spread;
    spread.median = n % 2 == 1 ? figures[n / 2] : 0.5 * (figures[n / 2 - 1] + figures[n / 2]);
    spread.mean = std::accumulate(figures.begin(), figures.end(), 0.0) / static_cast<double>(n);
    double squares = 0.0;
    for (const double figure : figures) squares += (figure - spread.mean) * (figure - spread.mean);
    if (n > 1) spread.deviation = std::sqrt(squares / static_cast<double>(n - 1));
    return spread;
}

std::vector<SpeedFigures> measure_speed(std::span<const std::filesystem::path> files, const SpeedSettings& settings,
                                        Progress& progress) {
    std::vector<std::unique_ptr<Runner>> runners;
    progress.begin("timing", static_cast<double>(files.size()) * (settings.repetitions + 1));
    double done = 0.0;
    for (const auto& file : files) {
        progress.check();
        runners.push_back(std::make_unique<Runner>(file, settings));
        if (settings.prompt_tokens > 0) runners.back()->prompt_seconds();
        if (settings.generated_tokens > 0) runners.back()->generation_seconds(1);
        progress.advance(++done, "warming up");
    }
    std::vector<SpeedFigures> figures(files.size());
    for (int repetition = 0; repetition < settings.repetitions; ++repetition) {
        for (std::size_t f = 0; f < runners.size(); ++f) {
            progress.check();
            if (settings.prompt_tokens > 0)
                figures[f].prompt.push_back(settings.prompt_tokens / runners[f]->prompt_seconds());
            if (settings.generated_tokens > 0)
                figures[f].generation.push_back(settings.parallel * settings.generated_tokens /
                                                runners[f]->generation_seconds(settings.generated_tokens));
            progress.advance(++done, "repetitions");
        }
    }
    progress.end();
    return figures;
}

}  // namespace cerebellum
