// Prints, as JSON, the tokens that node-llama-cpp's prebuilt binary generates greedily.
// node generate.mjs MODEL.gguf COUNT TOKEN...
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [model_path, count, ...prompt] = process.argv.slice(2);
const llama = await getLlama({build: "never", gpu: false, logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath: model_path});
const context = await model.createContext({contextSize: 128, threads: 1});
const sequence = context.getSequence();
const tokens = [];
for await (const token of sequence.evaluate(prompt.map(Number), {temperature: 0, yieldEogToken: true})) {
    tokens.push(token);
    if (tokens.length >= Number(count)) break;
}
console.log(JSON.stringify(tokens));
await llama.dispose();
process.exit(0);
