# Installation and the CMake package, so that find_package(cerebellum) gives cerebellum::cerebellum.
# What find_package cannot give a consumer again, it must not promise: with LLAMA_CPP_DIR, llama.cpp is a part of this
# build that nobody installs, so then only the executable is installed.
option(CEREBELLUM_INSTALL "Install the executable, the library and its CMake package" ${PROJECT_IS_TOP_LEVEL})
if(NOT CEREBELLUM_INSTALL)
  return()
endif()
include(CMakePackageConfigHelpers)

install(TARGETS cerebellum-executable RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(LLAMA_CPP_DIR)
  message(STATUS "LLAMA_CPP_DIR is used: the library and its CMake package are not installed (only the executable is)")
  return()
endif()

install(TARGETS cerebellum-library EXPORT cerebellum-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/cerebellum DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN "*_test.h" EXCLUDE PATTERN "cli" EXCLUDE)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/generated/cerebellum/version.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cerebellum)
install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/cerebellum)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cerebellum)
install(EXPORT cerebellum-targets NAMESPACE cerebellum:: DESTINATION ${package_dir})
configure_package_config_file(cmake/cerebellum-config.cmake.in cerebellum-config.cmake INSTALL_DESTINATION ${package_dir}
                              NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(cerebellum-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/cerebellum-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/cerebellum-config-version.cmake DESTINATION ${package_dir})
