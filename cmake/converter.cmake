# llama.cpp's converter of Hugging Face models, which `cerebellum convert` runs: installed in share/cerebellum/converter, and
# laid out in the same way beside the executable of this build. It is looked for beside the llama.cpp that we build with.
if(LLAMA_CPP_DIR)
  set(CEREBELLUM_CONVERTER_SOURCE ${LLAMA_CPP_DIR})
else()
  get_filename_component(CEREBELLUM_CONVERTER_SOURCE "${llama_DIR}/../../../share/llama.cpp" ABSOLUTE)
endif()
set(CEREBELLUM_CONVERTER_LIST ${CMAKE_CURRENT_SOURCE_DIR}/converter/requirements.txt)
set(CEREBELLUM_CONVERTER_FILES)
if(NOT EXISTS ${CEREBELLUM_CONVERTER_SOURCE}/convert_hf_to_gguf.py)
  message(STATUS "no convert_hf_to_gguf.py in ${CEREBELLUM_CONVERTER_SOURCE}: 'cerebellum convert' will not work")
  return()
endif()
file(GLOB_RECURSE CEREBELLUM_CONVERTER_FILES RELATIVE ${CEREBELLUM_CONVERTER_SOURCE}
     ${CEREBELLUM_CONVERTER_SOURCE}/convert_hf_to_gguf.py ${CEREBELLUM_CONVERTER_SOURCE}/conversion/*.py
     ${CEREBELLUM_CONVERTER_SOURCE}/gguf-py/LICENSE ${CEREBELLUM_CONVERTER_SOURCE}/gguf-py/gguf/*.py)
list(FILTER CEREBELLUM_CONVERTER_FILES EXCLUDE REGEX "^gguf-py/gguf/scripts/")

set(converter_links ${CMAKE_CURRENT_BINARY_DIR}/share/cerebellum/converter)
file(MAKE_DIRECTORY ${converter_links}/gguf-py)
foreach(name convert_hf_to_gguf.py conversion gguf-py/gguf)
  file(CREATE_LINK ${CEREBELLUM_CONVERTER_SOURCE}/${name} ${converter_links}/${name} SYMBOLIC)
endforeach()
file(CREATE_LINK ${CEREBELLUM_CONVERTER_LIST} ${converter_links}/requirements.txt SYMBOLIC)
