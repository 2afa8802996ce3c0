#include "cerebellum/predict/classes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace cerebellum {
namespace {

using Random = std::mt19937_64;

double normal(Random& random) {
    return std::normal_distribution<double>()(random);
}

struct Tensor {
    double rate = 1e-9;  // nats per token and byte saved
    double bytes = 1e6;  // saved
};

std::string name_of(std::size_t i) {
    return "tensor" + std::to_string(i);
}

/// Rows of tensors crushed to Q2_K. Windows differ in how hard they are, in common and for each tensor. ΔNLL scatters
/// around the KLD with twice its size as variance, as it does under text of the source's own distribution.
std::vector<Measurement> measure(const std::vector<Tensor>& tensors, std::size_t windows, Random& random,
                                 bool lossless = false) {
    constexpr double tokens = 400.0;
    std::vector<double> hard(windows);
    for (auto& value : hard) value = std::exp(0.3 * normal(random));
    std::vector<Measurement> rows;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
        Measurement m;
        m.tensor = name_of(t);
        m.type = "q2_K";
        for (std::size_t w = 0; w < windows; ++w) {
            // What a change of type leaves of a lossless one, 8-bit activations, has nothing to do with bytes.
            const double kld = lossless ? 1e-7 * (1.0 + static_cast<double>(t % 7)) * (1.0 + 0.1 * normal(random))
                                        : tensors[t].rate * tensors[t].bytes * hard[w] * (1.0 + 0.15 * normal(random));
            m.counts.push_back(tokens);
            m.kld.push_back(tokens * kld);
            m.delta_nll.push_back(tokens * kld + std::sqrt(2.0 * tokens * std::fabs(kld)) * normal(random));
            m.top1_agree.push_back(tokens);
        }
        rows.push_back(std::move(m));
    }
    return rows;
}

std::map<std::string, Classification> classes_of(const std::vector<Measurement>& rows,
                                                 const std::vector<Tensor>& tensors) {
    return classify(rows,
                    [&](const std::string& name, ggml_type) { return tensors[std::stoul(name.substr(6))].bytes; });
}

std::vector<Tensor> alike(std::size_t n) {
    std::vector<Tensor> tensors(n);
    for (std::size_t t = 0; t < n; ++t) tensors[t].bytes = 1e6 * (1.0 + static_cast<double>(t % 3));
    return tensors;
}

struct Called {
    double any_sacred = 0.0, any_demotable = 0.0;
};
void count(const std::map<std::string, Classification>& classes, Called& called) {
    bool sacred = false, demotable = false;
    for (const auto& [name, c] : classes) {
        sacred |= c.sensitivity == Sensitivity::sacred;
        demotable |= c.sensitivity == Sensitivity::demotable;
    }
    called.any_sacred += sacred;
    called.any_demotable += demotable;
}

constexpr int models = 200;
constexpr double most_called = models * (0.05 + 0.025);  // the level, and two standard errors of the simulation

TEST(Classes, of_tensors_at_their_share_are_neither_sacred_nor_demotable) {
    const auto tensors = alike(30);
    for (const std::size_t windows : {4U, 8U, 16U}) {
        Random random(1);
        Called called;
        for (int i = 0; i < models; ++i) count(classes_of(measure(tensors, windows, random), tensors), called);
        EXPECT_LE(called.any_sacred, most_called) << windows;
        EXPECT_LE(called.any_demotable, most_called) << windows;
    }
}

TEST(Classes, of_a_lossless_change_of_type_are_neither_sacred_nor_demotable) {
    const auto tensors = alike(30);
    for (const std::size_t windows : {8U, 16U}) {
        Random random(2);
        Called called;
        for (int i = 0; i < models; ++i) count(classes_of(measure(tensors, windows, random, true), tensors), called);
        EXPECT_LE(called.any_sacred, most_called) << windows;
        EXPECT_LE(called.any_demotable, most_called) << windows;
    }
}

/// Tensors whose damage differs, with the sign of every window's paired differences drawn anew: there is nothing to
/// find then, though the differences are anything but normal.
std::vector<Measurement> with_flipped_signs(std::vector<Measurement> rows, const std::vector<Tensor>& tensors,
                                            Random& random) {
    double bytes = 0.0;
    for (const auto& tensor : tensors) bytes += tensor.bytes;
    for (std::size_t w = 0; w < rows.front().counts.size(); ++w) {
        const double sign = random() >> 63 != 0 ? 1.0 : -1.0;
        for (const auto sums : {&Measurement::kld, &Measurement::delta_nll}) {
            double whole = 0.0;
            for (const auto& row : rows) whole += (row.*sums)[w];
            for (std::size_t t = 0; t < rows.size(); ++t) {
                const double share = whole * tensors[t].bytes / bytes;
                auto& sum = (rows[t].*sums)[w];
                sum = share + sign * (sum - share);
            }
        }
    }
    return rows;
}

TEST(Classes, of_differences_with_random_signs_are_neither_sacred_nor_demotable) {
    auto tensors = alike(30);
    for (std::size_t t = 0; t < tensors.size(); ++t) tensors[t].rate *= t % 5 == 0 ? 20.0 : 1.0;
    for (const std::size_t windows : {4U, 6U, 8U, 16U}) {
        Random random(3);
        Called called;
        const auto rows = measure(tensors, windows, random);
        for (int i = 0; i < models; ++i) count(classes_of(with_flipped_signs(rows, tensors, random), tensors), called);
        EXPECT_LE(called.any_sacred, most_called) << windows;
        EXPECT_LE(called.any_demotable, most_called) << windows;
    }
}

TEST(Classes, find_what_is_there) {
    auto tensors = alike(30);
    for (std::size_t t = 0; t < 5; ++t) tensors[t].rate = 50e-9;
    Random random(4);
    double sacred = 0.0, below = 0.0, wrong = 0.0;
    constexpr int repeats = 20;
    for (int i = 0; i < repeats; ++i)
        for (const auto& [name, c] : classes_of(measure(tensors, 8, random), tensors)) {
            const bool high = std::stoul(name.substr(6)) < 5;
            sacred += high && c.sensitivity == Sensitivity::sacred;
            below += !high && (c.sensitivity == Sensitivity::demotable || c.sensitivity == Sensitivity::safe);
            wrong += high ? c.sensitivity == Sensitivity::demotable || c.sensitivity == Sensitivity::safe
                          : c.sensitivity == Sensitivity::sacred;
        }
    EXPECT_GT(sacred / (5.0 * repeats), 0.6);
    EXPECT_GT(below / (25.0 * repeats), 0.8);
    EXPECT_EQ(wrong, 0.0);
}

TEST(Classes, of_few_windows_are_not_sure) {
    auto tensors = alike(6);
    tensors[0].rate = 50e-9;
    Random random(6);
    for (const auto& [name, c] : classes_of(measure(tensors, 4, random), tensors)) {
        EXPECT_NE(c.sensitivity, Sensitivity::sacred) << name;
        EXPECT_NE(c.sensitivity, Sensitivity::demotable) << name;
    }
    for (const auto& [name, c] : classes_of(measure(tensors, 1, random), tensors))
        EXPECT_EQ(c.sensitivity, Sensitivity::sensitive) << name;
}

TEST(Classes, judge_by_the_type_nearest_to_the_wanted_bits_and_the_windows_that_all_have) {
    Random random(5);
    auto tensors = alike(2);
    auto rows = measure(tensors, 8, random);
    auto four = rows[0];
    four.type = "q4_K";
    rows.push_back(four);
    for (const auto sums : {&Measurement::counts, &Measurement::kld, &Measurement::delta_nll, &Measurement::top1_agree})
        (rows[1].*sums).resize(6);
    const auto classes = classes_of(rows, tensors);
    EXPECT_EQ(classes.at("tensor0").type, "q2_K");
    EXPECT_EQ(classes.at("tensor0").windows, 6U);
    ClassOptions options;
    options.crushed_bits = 4.5;
    EXPECT_EQ(classify(
                  rows, [](const std::string&, ggml_type) { return 1.0; }, options)
                  .at("tensor0")
                  .type,
              "q4_K");
    EXPECT_TRUE(classify({}, [](const std::string&, ggml_type) { return 1.0; }).empty());
}

}  // namespace
}  // namespace cerebellum
