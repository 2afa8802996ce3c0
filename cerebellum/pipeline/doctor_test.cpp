#include "cerebellum/pipeline/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum {
namespace {

using ::testing::HasSubstr;
using Status = Finding::Status;

Patient healthy() {
    Patient patient;
    patient.machine.processor = "Some Processor";
    patient.machine.processor_flags = {"avx", "avx2", "fma", "f16c"};
    patient.machine.physical_cores = 8;
    patient.machine.logical_cores = 16;
    patient.machine.memory_bytes = patient.machine.available_bytes = std::uint64_t{32} << 30;
    patient.devices = {{"CPU", "Some Processor", "CPU", 0, 0}};
    patient.cpu_features = {"AVX", "AVX2", "FMA", "F16C"};
    patient.folder = "/work";
    patient.scratch = "/tmp";
    patient.folder_free = patient.scratch_free = std::uint64_t{100} << 30;
    return patient;
}

Finding finding(const std::vector<Finding>& findings, const std::string& what) {
    const auto found = std::ranges::find(findings, what, &Finding::what);
    return found == findings.end() ? Finding{Status::problem, what, "no such finding", ""} : *found;
}

TEST(Doctor, a_healthy_machine_has_nothing_to_mend) {
    for (const auto& each : examine(healthy())) EXPECT_EQ(each.status, Status::good) << each.what << ": " << each.said;
}

TEST(Doctor, everything_that_is_wrong_says_how_to_mend_it) {
    auto patient = healthy();
    patient.machine.load = 20.0;
    patient.machine.limit_bytes = std::uint64_t{1} << 30;
    patient.machine.graphics_hardware = "NVIDIA";
    patient.machine.processor_flags.insert("avx512f");
    patient.folder_free = 1000;
    patient.scratch_free = 0;
    patient.programs = {{"ollama", "running models", ""}};
    patient.slow_types = {"q4_K"};
    const auto findings = examine(patient);
    for (const auto* what : {"processor", "memory", "devices", "build", "disk"})
        EXPECT_EQ(finding(findings, what).status, Status::warning) << what;
    EXPECT_EQ(finding(findings, "scratch").status, Status::problem);
    EXPECT_EQ(finding(findings, "ollama").status, Status::note);
    EXPECT_EQ(finding(findings, "quantizing").status, Status::note);
    EXPECT_THAT(finding(findings, "quantizing").said, HasSubstr("q4_K"));
    for (const auto& each : findings) EXPECT_EQ(each.mend.empty(), each.status == Status::good) << each.what;
    EXPECT_THAT(finding(findings, "build").said, HasSubstr("AVX512"));
    EXPECT_THAT(finding(findings, "devices").said, HasSubstr("NVIDIA"));
}

TEST(Doctor, a_gpu_that_is_used_is_no_warning) {
    auto patient = healthy();
    patient.machine.graphics_hardware = "NVIDIA";
    patient.devices.push_back({"CUDA0", "Some Card", "GPU", 10'000'000'000, 12'000'000'000});
    EXPECT_EQ(finding(examine(patient), "devices").status, Status::good);
    const auto fits = capacities(patient);
    ASSERT_EQ(fits.size(), 2U);
    EXPECT_EQ(fits[1].where, "CUDA0");
    EXPECT_NEAR(fits[1].run_at_4_5_bpw, 0.85 * 10.0 * 8.0 / 4.5, 1e-9);
}

TEST(Doctor, no_device_at_all_is_a_problem) {
    auto patient = healthy();
    patient.devices.clear();
    EXPECT_EQ(finding(examine(patient), "devices").status, Status::problem);
}

TEST(Doctor, a_model_that_does_not_fit_is_streamed) {
    const auto model = GgufFile::open(testing::small_model());
    auto patient = healthy();
    EXPECT_EQ(finding(examine_model(patient, model, 0), "measuring").status, Status::good);
    patient.machine.limit_bytes = model.file_size();
    const auto streamed = finding(examine_model(patient, model, 0), "measuring");
    EXPECT_EQ(streamed.status, Status::note);
    EXPECT_THAT(streamed.mend, HasSubstr("--memory"));
}

TEST(Doctor, files_that_do_not_fit_on_the_disk) {
    const auto model = GgufFile::open(testing::small_model());
    auto patient = healthy();
    patient.folder_free = 5'000'000;
    EXPECT_EQ(finding(examine_model(patient, model, 2'000'000), "room for files").status, Status::problem);
    EXPECT_EQ(finding(examine_model(patient, model, 1'000'000), "room for files").status, Status::good);
}

TEST(Doctor, this_machine) {
    const auto json = to_json(admit());
    EXPECT_GT(json["memory_bytes"].get<std::uint64_t>(), 0U);
    EXPECT_FALSE(json["devices"].empty());
    EXPECT_EQ(json["devices"][0]["kind"], "CPU");
    EXPECT_FALSE(json["cpu_features"].empty());
}

}  // namespace
}  // namespace cerebellum
