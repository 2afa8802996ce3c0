#include "cerebellum/core/compressed_file.h"

#include <fmt/format.h>
#include <zlib.h>

#include <array>
#include <boost/locale/utf.hpp>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include "cerebellum/core/error.h"
#include "cerebellum/core/file.h"
#include "cerebellum/core/lfs_pointer.h"

namespace cerebellum {

namespace fs = std::filesystem;

std::string read_unpacked(const fs::path& path, std::size_t most_bytes) {
    check_regular(path);
    errno = 0;
    const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), &gzclose_r);
    if (!file) throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
    std::string content;
    std::array<char, 1 << 16> buffer;
    while (true) {
        const int got = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
        if (got > 0) content.append(buffer.data(), static_cast<std::size_t>(got));
        if (content.size() > most_bytes)
            throw Error(fmt::format("cannot use {}: it holds more than {} MiB of text; cut off what is not needed",
                                    path.string(), most_bytes >> 20));
        if (got < static_cast<int>(buffer.size())) break;
    }
    // A stream that ends too early is not seen by gzread's return value alone.
    int status = Z_OK;
    const char* reason = gzerror(file.get(), &status);
    if (status != Z_OK && status != Z_STREAM_END)
        throw Error(fmt::format("cannot unpack {}: {}; fetch it again", path.string(),
                                status == Z_BUF_ERROR ? "it is cut short" : reason));
    check_no_lfs_pointer(path, content);
    if (content.starts_with("\xEF\xBB\xBF")) content.erase(0, 3);
    return content;
}

std::string read_text(const fs::path& path) {
    namespace utf = boost::locale::utf;
    std::string text = read_unpacked(path);
    for (auto at = text.cbegin(); at != text.cend();) {
        const auto begin = at;
        const auto point = utf::utf_traits<char>::decode(at, text.cend());
        if (point == utf::illegal || point == utf::incomplete)
            throw Error(
                fmt::format("{} is no text in UTF-8 (byte {} does not fit); convert it with iconv, or unpack it if "
                            "it is packed by anything but gzip",
                            path.string(), begin - text.cbegin()));
    }
    return text;
}

}  // namespace cerebellum
