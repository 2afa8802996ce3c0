#include "cerebellum/llama/file_type.h"

#include <llama.h>

namespace cerebellum {

std::uint32_t guessed_file_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return LLAMA_FTYPE_ALL_F32;
        case GGML_TYPE_F16:
            return LLAMA_FTYPE_MOSTLY_F16;
        case GGML_TYPE_Q4_0:
            return LLAMA_FTYPE_MOSTLY_Q4_0;
        case GGML_TYPE_Q4_1:
            return LLAMA_FTYPE_MOSTLY_Q4_1;
        case GGML_TYPE_Q8_0:
            return LLAMA_FTYPE_MOSTLY_Q8_0;
        case GGML_TYPE_Q5_0:
            return LLAMA_FTYPE_MOSTLY_Q5_0;
        case GGML_TYPE_Q5_1:
            return LLAMA_FTYPE_MOSTLY_Q5_1;
        case GGML_TYPE_Q2_K:
            return LLAMA_FTYPE_MOSTLY_Q2_K;
        case GGML_TYPE_Q3_K:
            return LLAMA_FTYPE_MOSTLY_Q3_K_M;
        case GGML_TYPE_Q4_K:
            return LLAMA_FTYPE_MOSTLY_Q4_K_M;
        case GGML_TYPE_Q5_K:
            return LLAMA_FTYPE_MOSTLY_Q5_K_M;
        case GGML_TYPE_Q6_K:
            return LLAMA_FTYPE_MOSTLY_Q6_K;
        case GGML_TYPE_IQ2_XXS:
            return LLAMA_FTYPE_MOSTLY_IQ2_XXS;
        case GGML_TYPE_IQ2_XS:
            return LLAMA_FTYPE_MOSTLY_IQ2_XS;
        case GGML_TYPE_IQ3_XXS:
            return LLAMA_FTYPE_MOSTLY_IQ3_XXS;
        case GGML_TYPE_IQ1_S:
            return LLAMA_FTYPE_MOSTLY_IQ1_S;
        case GGML_TYPE_IQ4_NL:
            return LLAMA_FTYPE_MOSTLY_IQ4_NL;
        case GGML_TYPE_IQ3_S:
            return LLAMA_FTYPE_MOSTLY_IQ3_S;
        case GGML_TYPE_IQ2_S:
            return LLAMA_FTYPE_MOSTLY_IQ2_S;
        case GGML_TYPE_IQ4_XS:
            return LLAMA_FTYPE_MOSTLY_IQ4_XS;
        case GGML_TYPE_IQ1_M:
            return LLAMA_FTYPE_MOSTLY_IQ1_M;
        case GGML_TYPE_BF16:
            return LLAMA_FTYPE_MOSTLY_BF16;
        case GGML_TYPE_TQ1_0:
            return LLAMA_FTYPE_MOSTLY_TQ1_0;
        case GGML_TYPE_TQ2_0:
            return LLAMA_FTYPE_MOSTLY_TQ2_0;
        case GGML_TYPE_MXFP4:
            return LLAMA_FTYPE_MOSTLY_MXFP4_MOE;
        case GGML_TYPE_NVFP4:
            return LLAMA_FTYPE_MOSTLY_NVFP4;
        case GGML_TYPE_Q1_0:
            return LLAMA_FTYPE_MOSTLY_Q1_0;
        case GGML_TYPE_Q2_0:
            return LLAMA_FTYPE_MOSTLY_Q2_0;
        default:
            return LLAMA_FTYPE_GUESSED;
    }
}

}  // namespace cerebellum
