// The page's solver without the page: reads problems, writes what it chooses.
// Usage: node knapsack.mjs KNAPSACK.js PROBLEMS.json > choices.json
// Problems: [{"budget": bytes, "groups": [[[bytes, cost], …], …]}, …]; answers: [{"choice": […], "bytes", "cost", "exact"} or null, …]
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { solveKnapsack } = await import(pathToFileURL(process.argv[2]).href);
const problems = JSON.parse(readFileSync(process.argv[3], "utf8"));
console.log(JSON.stringify(problems.map(({ budget, groups }) => solveKnapsack(groups.map((g) => g.map(([bytes, cost]) => ({ bytes, cost }))), budget))));
