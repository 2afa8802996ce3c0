#include "cerebellum/core/hash.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <fstream>
#include <vector>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"

namespace cerebellum {

struct Sha256::State {
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
    if (!state_->context || EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) != 1)
        throw Error("SHA-256 is not available in this build of OpenSSL");
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
    EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size());
}

void Sha256::update(std::string_view text) {
    update(std::as_bytes(std::span(text)));
}

std::string Sha256::finish() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    EVP_DigestFinal_ex(state_->context.get(), digest.data(), &length);
    std::string text;
    for (unsigned int i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
    return text;
}

std::string sha256(std::string_view text) {
    Sha256 hash;
    hash.update(text);
    return hash.finish();
}

std::string sha256_of_files(std::span<const std::filesystem::path> paths,
                            const std::function<void(std::uint64_t done)>& read) {
    Sha256 hash;
    std::vector<char> piece(std::size_t{8} << 20);
    std::uint64_t done = 0;
    for (const auto& path : paths) {
        check_regular(path);
        std::ifstream file(path, std::ios::binary);
        while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
            const auto size = static_cast<std::size_t>(file.gcount());
            hash.update(std::as_bytes(std::span(piece.data(), size)));
            read(done += size);
        }
        if (!file.eof()) throw Error(fmt::format("cannot read {}", path.string()));
    }
    return hash.finish();
}

}  // namespace cerebellum
