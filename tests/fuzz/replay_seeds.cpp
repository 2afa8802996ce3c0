// Runs a fuzz target without a fuzzer: every file of the folders given, and for so many seconds their mutations, the
// same ones every time. A test of every build, where scripts/fuzz.sh looks for new inputs. Usage: replay-seeds SECONDS
// FOLDER...
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;

void run(const std::string& bytes) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

/// A few changes of the kinds that find most: other bytes, pieces twice, pieces gone, the end gone, pieces of another.
std::string mutated(std::string bytes, const std::string& other, std::mt19937& random) {
    const auto below = [&](std::size_t n) { return n == 0 ? 0 : random() % n; };
    for (auto n = 1 + below(4); n > 0; --n) {
        const auto at = below(bytes.size() + 1), length = below(std::min<std::size_t>(bytes.size() - at, 32) + 1);
        switch (random() % 6) {
            case 0:
                if (at < bytes.size()) bytes[at] = static_cast<char>(random());
                break;
            case 1:
                if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
                break;
            case 2:
                bytes.insert(at, bytes.substr(at, length));
                break;
            case 3:
                bytes.erase(at, length);
                break;
            case 4:
                bytes.resize(at);
                break;
            default:
                bytes.insert(at, other.substr(below(other.size()), length + 1));
                break;
        }
        if (bytes.empty()) bytes.push_back(static_cast<char>(random()));
    }
    return bytes;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    std::vector<fs::path> files;
    for (int i = 2; i < argc; ++i)
        for (const auto& entry : fs::recursive_directory_iterator(argv[i]))
            if (entry.is_regular_file() && entry.path().extension() != ".md") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<std::string> seeds;
    for (const auto& path : files) {
        std::ifstream file(path, std::ios::binary);
        seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    if (seeds.empty()) return 2;
    for (std::size_t i = 0; i < seeds.size(); ++i) {
        std::fprintf(stderr, "%s\n", files[i].c_str());
        run(seeds[i]);
    }
    std::mt19937 random(1);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
    std::size_t runs = 0;
    const char* last = std::getenv("CEREBELLUM_FUZZ_LAST");  // where the input that ends the program is to be found
    for (; std::chrono::steady_clock::now() < end; ++runs) {
        const auto bytes = mutated(seeds[random() % seeds.size()], seeds[random() % seeds.size()], random);
        if (last != nullptr) std::ofstream(last, std::ios::binary) << bytes;
        run(bytes);
    }
    std::printf("%zu inputs\n", seeds.size() + runs);
    return 0;
}
