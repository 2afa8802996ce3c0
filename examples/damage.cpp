// Measures what each tensor of a model loses in a few types, chooses a type for each and builds the file.
// damage MODEL.gguf SIZE OUT.gguf [TOKENS [THREADS]]
#include <cerebellum/build/build_gguf.h>
#include <cerebellum/core/error.h>
#include <cerebellum/llama/log.h>
#include <cerebellum/pipeline/allocation.h>
#include <cerebellum/pipeline/goal.h>
#include <cerebellum/pipeline/session.h>
#include <cerebellum/predict/damage.h>

#include <cstdio>
#include <string>

namespace {

/// The library never prints: what it has to say comes here.
class Reporter final : public cerebellum::Progress {
  public:
    void begin(std::string_view stage, double) override { say("", stage); }
    void advance(double, std::string_view) override {}
    void end() override {}
    void warn(std::string_view message) override { say("warning: ", message); }
    void info(std::string_view message) override { say("", message); }
    void detail(std::string_view) override {}

  private:
    static void say(const char* before, std::string_view text) {
        std::fprintf(stderr, "%s%.*s\n", before, static_cast<int>(text.size()), text.data());
    }
};

void run(const std::string& model, const std::string& size, const std::string& output, int tokens, int threads) {
    Reporter progress;
    cerebellum::RunOptions options;
    options.model = model;
    options.tokens = tokens;
    options.context = 128;
    options.threads = threads;
    options.journal = output + ".journal.db";
    options.types = {GGML_TYPE_Q2_K, GGML_TYPE_Q4_K};

    // The text, the importance matrix and the figures are made once and kept in the journal.
    cerebellum::Session session(options, progress);
    session.measure();
    for (const auto& [tensor, damages] : cerebellum::predict_damage(session.journal().measurements()))
        for (const auto& damage : damages)
            std::printf("%-32s %-8s %.6f +- %.6f nats per token\n", tensor.c_str(), damage.type.c_str(), damage.kld,
                        damage.error);

    const auto& imatrix = session.imatrix();
    const auto problem = cerebellum::make_problem(session.source(), session.journal(),
                                                  cerebellum::imatrix_info(imatrix, session.imatrix_name()));
    cerebellum::AllocationRequest request;
    request.goal =
        cerebellum::AllocationGoal::of_size(cerebellum::parse_size(size).bytes(session.source().n_weights()));
    const auto solved = cerebellum::solve_goal(session.source(), problem, request);
    const auto recipe = cerebellum::make_recipe(session.source(), session.journal(), solved);

    cerebellum::BuildOptions build;
    build.threads = session.threads();
    build.overwrite = true;
    build.imatrix_file = session.imatrix_name();
    const auto bytes = cerebellum::build_gguf(session.source(), recipe, &imatrix, output, build, progress);
    std::printf("%s: %llu bytes, predicted KLD %.5f nats per token\n", output.c_str(),
                static_cast<unsigned long long>(bytes), recipe.predicted_kld);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "usage: damage MODEL.gguf SIZE OUT.gguf [TOKENS [THREADS]]\n");
        return 2;
    }
    try {
        cerebellum::silence_llama_log();
        run(argv[1], argv[2], argv[3], argc > 4 ? std::stoi(argv[4]) : 1024, argc > 5 ? std::stoi(argv[5]) : 0);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "damage: %s\n", error.what());
        return 1;
    }
}
