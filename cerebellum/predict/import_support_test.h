#pragma once

// For tests of importers only: files of a few lines, and what is said about them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "cerebellum/gguf/gguf_support_test.h"

namespace cerebellum::testing {

class ImportTest : public ::testing::Test {
  protected:
    fs::path write(const std::string& name, const std::string& content) const {
        write_file_atomically(folder_ / name, content);
        return folder_ / name;
    }

    TemporaryFolder folder_;
};

}  // namespace cerebellum::testing
