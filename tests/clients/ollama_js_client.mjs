// ollama for JavaScript, which names models in its own way: all that it can do here.
import { Ollama } from "ollama"

const client = new Ollama({
  host: process.env.EDGED_URL,
  headers: { Authorization: "Bearer " + process.env.EDGED_KEY },
})

async function tried(what, use) {
  let result
  try {
    const made = await use()
    result = made ? "ok" : `gave ${made}`
  } catch (error) {
    result = `${error.name}: ${error.message}`
  }
  console.log("tried: " + JSON.stringify([what, result]))
}

async function failure(promise) {
  return promise.then(() => "", (error) => error.message)
}

const messages = [{ role: "user", content: "tell a story" }]

await tried("list", async () =>
  (await client.list()).models.map((model) => model.name).join() ===
    "small:latest,Lamp:latest,vectors:latest,house:latest")
for (const model of ["small", "house"])
  await tried(`chat, streamed: ${model === "small" ? "a model" : "an agent of edged"}`, async () => {
    let text = ""
    for await (const part of await client.chat({ model, messages, stream: true })) text += part.message.content
    return text === "one two three"
  })
await tried("pull, streamed, to its end", async () => {
  let last = ""
  for await (const part of await client.pull({ model: "small", stream: true })) last = part.status
  return last === "success"
})
await tried("generate: an empty prompt unloads", async () =>
  (await client.generate({ model: "small", prompt: "", keep_alive: 0 })).done_reason === "unload")
await tried("embed", async () =>
  (await client.embed({ model: "vectors", input: ["a", "b"] })).embeddings.length === 2)
await tried("errors have their text", async () =>
  (await failure(client.show({ model: "nope" }))) === "model 'nope' not found" &&
  (await failure(client.delete({ model: "vectors" }))).includes("user's own file"))
