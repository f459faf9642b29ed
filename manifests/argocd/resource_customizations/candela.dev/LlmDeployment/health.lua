-- Health of an LlmDeployment for Argo CD: the table of the design's rule 0 (`docs/how-to/read-conditions.md`), in Lua 5.1.
local hs = { status = "Progressing", message = "Waiting for the operator" }

-- Until the operator has acted on this generation, its status speaks of another one.
if obj.status == nil or obj.status.observedGeneration == nil
    or obj.status.observedGeneration ~= obj.metadata.generation or obj.status.conditions == nil then
  return hs
end

local found = {}
for _, condition in ipairs(obj.status.conditions) do
  found[condition.type] = condition
end

local ready, stalled, reconciling = found["Ready"], found["Stalled"], found["Reconciling"]
if stalled ~= nil and stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = stalled.message
elseif ready ~= nil and ready.status == "False" and ready.reason == "Suspended" then
  hs.status = "Suspended"
  hs.message = ready.message
elseif reconciling ~= nil and reconciling.status == "True" then
  hs.message = reconciling.message
elseif ready ~= nil and ready.status == "True" then
  hs.status = "Healthy"
  hs.message = ready.message
elseif ready ~= nil then
  hs.message = ready.message
end
return hs
