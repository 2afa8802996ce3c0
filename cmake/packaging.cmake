# Installation, the CMake package, so that find_package(cerebellum) gives cerebellum::cerebellum, and Debian packages.
# What find_package cannot give a consumer again, it must not promise: with LLAMA_CPP_DIR, llama.cpp is a part of this
# build that nobody installs, so then only the executable is installed.
option(CEREBELLUM_INSTALL "Install the executable, the library and its CMake package" ${PROJECT_IS_TOP_LEVEL})
option(CEREBELLUM_BUNDLE_LLAMA "Install llama.cpp's libraries and headers too, so that the CMake package needs no other" OFF)
if(NOT CEREBELLUM_INSTALL)
  return()
endif()
include(CMakePackageConfigHelpers)

# Components: runtime is for who runs cerebellum, development for who links the library.
set(doc_dir ${CMAKE_INSTALL_DATADIR}/doc)
install(TARGETS cerebellum-executable RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime)
install(FILES README.md CHANGELOG.md NOTICE DESTINATION ${doc_dir}/cerebellum COMPONENT runtime)
install(FILES LICENSE RENAME copyright DESTINATION ${doc_dir}/cerebellum COMPONENT runtime)

if(CEREBELLUM_CONVERTER_FILES)
  install(FILES ${CEREBELLUM_CONVERTER_LIST} DESTINATION ${CMAKE_INSTALL_DATADIR}/cerebellum/converter COMPONENT runtime)
  foreach(file IN LISTS CEREBELLUM_CONVERTER_FILES)
    cmake_path(GET file PARENT_PATH folder)
    install(FILES ${CEREBELLUM_CONVERTER_SOURCE}/${file} COMPONENT runtime
            DESTINATION ${CMAKE_INSTALL_DATADIR}/cerebellum/converter/${folder})
  endforeach()
endif()

# Manual pages and completions are what the program itself says of its commands.
if(NOT CMAKE_CROSSCOMPILING)
  set(described ${CMAKE_CURRENT_BINARY_DIR}/described)
  install(CODE "
    file(REMOVE_RECURSE \"${described}\")
    file(MAKE_DIRECTORY \"${described}/completion\")
    set(ENV{XDG_CONFIG_HOME} /nonexistent)
    execute_process(COMMAND \"$<TARGET_FILE:cerebellum-executable>\" man --folder \"${described}/man1\"
                    COMMAND_ERROR_IS_FATAL ANY)
    foreach(shell bash zsh fish)
      execute_process(COMMAND \"$<TARGET_FILE:cerebellum-executable>\" completion \${shell}
                      OUTPUT_FILE \"${described}/completion/\${shell}\" COMMAND_ERROR_IS_FATAL ANY)
    endforeach()" COMPONENT runtime)
  install(DIRECTORY ${described}/man1/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT runtime)
  install(FILES ${described}/completion/bash RENAME cerebellum
          DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions COMPONENT runtime)
  install(FILES ${described}/completion/zsh RENAME _cerebellum
          DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions COMPONENT runtime)
  install(FILES ${described}/completion/fish RENAME cerebellum.fish
          DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d COMPONENT runtime)
endif()

# Licences of what is compiled into the executable. Debian keeps those of its packages in one place.
get_filename_component(llama_prefix "${llama_DIR}/../../.." ABSOLUTE)
if(LLAMA_CPP_DIR)
  set(llama_licences ${LLAMA_CPP_DIR}/LICENSE)
else()
  set(llama_licences ${llama_prefix}/share/llama.cpp/LICENSE)
endif()
if(EXISTS ${llama_licences})
  install(FILES ${llama_licences} DESTINATION ${doc_dir}/cerebellum/licences RENAME llama.cpp COMPONENT runtime)
endif()
foreach(package libcli11-dev nlohmann-json3-dev libfmt-dev libboost-dev)
  if(EXISTS /usr/share/doc/${package}/copyright)
    install(FILES /usr/share/doc/${package}/copyright DESTINATION ${doc_dir}/cerebellum/licences RENAME ${package}
            COMPONENT runtime)
  endif()
endforeach()

if(LLAMA_CPP_DIR)
  message(STATUS "LLAMA_CPP_DIR is used: the library and its CMake package are not installed (only the executable is)")
  return()
endif()

install(TARGETS cerebellum-library EXPORT cerebellum-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        COMPONENT development)
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/cerebellum DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development
        FILES_MATCHING PATTERN "*.h" PATTERN "*_test.h" EXCLUDE PATTERN "cli" EXCLUDE PATTERN "web" EXCLUDE)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/generated/cerebellum/version.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cerebellum COMPONENT development)
install(FILES LICENSE RENAME copyright DESTINATION ${doc_dir}/libcerebellum-dev COMPONENT development)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cerebellum)
set(llama_bundle_dir ${CMAKE_INSTALL_LIBDIR}/cerebellum/llama.cpp)
if(CEREBELLUM_BUNDLE_LLAMA)
  # The libraries are static and the headers beside them: nothing of it gets in the way of a llama.cpp of the system.
  install(DIRECTORY ${llama_prefix}/include ${llama_prefix}/lib DESTINATION ${llama_bundle_dir} COMPONENT development
          PATTERN pkgconfig EXCLUDE)
  set(llama_search_path "\${CMAKE_CURRENT_LIST_DIR}/../../cerebellum/llama.cpp")  # other packages change PACKAGE_PREFIX_DIR
else()
  set(llama_search_path ${llama_DIR})
endif()
install(EXPORT cerebellum-targets NAMESPACE cerebellum:: DESTINATION ${package_dir} COMPONENT development)
configure_package_config_file(cmake/cerebellum-config.cmake.in cerebellum-config.cmake INSTALL_DESTINATION ${package_dir}
                              NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(cerebellum-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cerebellum-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/cerebellum-config-version.cmake DESTINATION ${package_dir} COMPONENT development)

# `make deb`: cerebellum (the program) and libcerebellum-dev (what cerebellum-config.cmake.in looks for is what it needs).
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "The Cerebellum authors <noreply@cerebellum.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
set(CPACK_PACKAGE_DESCRIPTION
    "Measures inside the running model what each tensor loses at each quantization type,\n\
spends the bytes where that damage is largest, builds a standard GGUF file and proves\n\
it against the stock presets of llama.cpp.")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL runtime development)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME cerebellum)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION science)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_RECOMMENDS "python3-venv")  # for `cerebellum convert`
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libcerebellum-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS
    "libfmt-dev, nlohmann-json3-dev, libsqlite3-dev, libssl-dev, zlib1g-dev, libyaml-cpp-dev")
include(CPack)
