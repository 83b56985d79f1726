// What the page says, in both languages.

const WORDS = {
  zh: {
    skip: "跳到输入框", conversations: "会话", close: "关闭", new: "新会话", search: "搜索会话", language: "EN · Switch to English",
    language_short: "EN", theme: "主题", theme_auto: "主题：跟随系统", theme_light: "主题：浅色", theme_dark: "主题：深色",
    data: "数据与备份", model: "模型", tune: "模型设置", messages: "消息", write: "写点什么……", send: "发送", stop: "停止",
    hint: "Enter 发送 · Shift+Enter 换行 · Esc 停止", system: "系统提示词", system_hint: "例如：请用简短的中文回答。",
    temperature: "温度", top_p: "Top-p", repetition_penalty: "重复惩罚", top_k: "Top-k（0 为关闭）",
    max_new_tokens: "最长回答（词元）", seed: "随机种子", random: "随机", usual: "恢复默认", conversation: "会话",
    rename: "标题", export_md: "导出 Markdown", export_json: "导出 JSON", delete: "删除", delete_sure: "确定删除？",
    cancel: "取消", save: "保存", data_hint: "备份含您的全部会话。导入时按编号合并，不会覆盖较新的会话。",
    export_all: "导出全部", import_all: "导入备份", imported: (n, files) => `已导入或更新 ${n} 个会话、${files} 个文件`, sign_out: "退出登录",
    you: "你", thought: "思考过程", thinking: "正在思考……", copy: "复制", copied: "已复制", again: "重新回答", edit: "编辑",
    earlier: "上一个版本", later: "下一个版本", version: (i, n) => `第 ${i} 个版本，共 ${n} 个`, answering: "正在回答",
    done: "回答完毕", stopped: "已停止", failed: "出错了", nothing: "没有写出任何内容", none: "还没有会话", not_found: "没有找到",
    hello: "你好，想聊点什么？", more: (t) => `“${t}”的操作`, busy: "正在回答", tokens: (n) => `${n} 词元`,
    rate: (r) => `${r} 词元/秒`, prompt_tokens: (n) => `提示 ${n} 词元`, lost: "连接断了，正在重试……", gone: "这个会话已被删除。", offline: "连不上服务器，请稍后再试。",
    http: (n) => (n === 413 ? "中间的代理服务器不让这么大的文件通过（HTTP 413）。" : `服务器或中间的代理没有正常回答（HTTP ${n}），请稍后再试。`),
    signed_out: "登录已失效。请重新载入页面并登录；没发出的文字会保留。", not_copied: "浏览器不允许复制，请选中文字后复制。",
    unreadable: (n) => `${n} 读不了；如果文件移动过，请重新选择。`, add_folder: "添加文件夹",
    too_many: (n) => `文件太多，只添加前 ${n} 个。`, not_documents: (names) => `没有添加不是资料的 ${names.length} 个文件：${names.slice(0, 3).join("、")}${names.length > 3 ? "……" : ""}`,
    no_files_inside: "里面没有可以添加的文件。", left_files: (n) => `还有 ${n} 个文件没有添加。`, more_files: (n) => `还有 ${n} 个文件`, cancel_rest: "取消其余文件", all_files: (n) => `全部 ${n} 个文件`,
    documents: "资料", attach: "添加文件", files_here: "本会话的文件", bases: "资料库", base_name: "新资料库的名字", address: "网页地址 https://…", add_address: "添加", make: "新建",
    documents_hint: (mb) => `PDF、Word、PowerPoint、Excel、网页、Markdown、文本和图片，每个不超过 ${mb} MB。文件只存在这台服务器上。`,
    add_files: "添加文件", use_base: (n) => `回答时使用资料库“${n}”`, remove: (n) => `移除 ${n}`, remove_base: (n) => `删除资料库“${n}”`,
    waiting_file: "等待中", reading: (d, n) => (n ? `正在读 ${d}/${n} 页` : "正在读"), pages: (n) => `${n} 页`, ocr_pages: (n) => `${n} 页由图片识别`,
    blank_pages: (n) => `${n} 页空白`, unread_pages: (n) => `${n} 页读不出`, uploading: "正在上传", no_files: "还没有文件", too_large: (n, mb) => `${n} 超过 ${mb} MB，请拆分后再添加。`,
    cancel_file: (n) => `取消 ${n}`, source: "出处", sources: "出处", page_number: (n) => `第 ${n} 页`, source_gone: "这个文件已移除或已更改；这里是回答时的原文。",
    quotation: "模型没有给出有出处的回答，这是资料中最接近的原文", refusal: "资料中没有找到答案", drop: "松开即可添加到本会话", base: (n) => `资料库 ${n}`,
    files_title: "文件", absent: (names) => `没有使用这些资料库（已删除或没有文件）：${names.join("、")}`,
    unread: (names) => `还没读完，回答时没有使用：${names.join("、")}`, unseen: (names) => `这个模型看不了图片，没有使用：${names.join("、")}`,
    open_source: (n, f) => `打开出处 ${n}：${f}`,
    send_edit: "发送修改", table: "表格", first_title: "新会话",
  },
  en: {
    skip: "Skip to the message box", conversations: "Chats", close: "Close", new: "New chat", search: "Search chats",
    language: "中 · 切换到中文", language_short: "中", theme: "Theme", theme_auto: "Theme: as the system", theme_light: "Theme: light",
    theme_dark: "Theme: dark", data: "Data and backup", model: "Model", tune: "Model settings", messages: "Messages",
    write: "Write a message…", send: "Send", stop: "Stop", hint: "Enter sends · Shift+Enter new line · Esc stops",
    system: "System prompt", system_hint: "For example: answer briefly.", temperature: "Temperature", top_p: "Top-p",
    repetition_penalty: "Repetition penalty", top_k: "Top-k (0: off)", max_new_tokens: "Longest answer (tokens)",
    seed: "Seed", random: "random", usual: "Defaults", conversation: "Chat", rename: "Title", export_md: "Export Markdown",
    export_json: "Export JSON", delete: "Delete", delete_sure: "Really delete?", cancel: "Cancel", save: "Save",
    data_hint: "A backup holds all your chats. Importing merges by id, and never replaces a newer chat.",
    export_all: "Export everything", import_all: "Import a backup", imported: (n, files) => `${n} chats and ${files} files are new or have grown`,
    sign_out: "Sign out", you: "You", thought: "Thoughts", thinking: "Thinking…", copy: "Copy", copied: "Copied",
    again: "Answer again", edit: "Edit", earlier: "Earlier version", later: "Later version",
    version: (i, n) => `Version ${i} of ${n}`, answering: "Answering", done: "Answer complete", stopped: "Stopped",
    failed: "Failed", nothing: "Nothing was written", none: "No chats yet", not_found: "Nothing found",
    hello: "Hello! What shall we talk about?", more: (t) => `Actions for “${t}”`, busy: "answering",
    tokens: (n) => `${n} tokens`, rate: (r) => `${r} tokens/s`, prompt_tokens: (n) => `prompt ${n} tokens`,
    lost: "The connection is lost; trying again…", gone: "This chat was deleted.", offline: "The server cannot be reached; try again later.",
    http: (n) => (n === 413 ? "A proxy in between lets nothing so large pass (HTTP 413)." : `The server, or a proxy in between, gave no proper answer (HTTP ${n}); try again later.`),
    signed_out: "You are signed out. Load the page anew and sign in; what you have not sent is kept.",
    not_copied: "The browser does not allow copying; select the text and copy it.",
    unreadable: (n) => `${n} cannot be read; if it was moved, choose it anew.`, add_folder: "Add a folder",
    too_many: (n) => `These are too many files; the first ${n} are added.`, not_documents: (names) => `${names.length} files that are no documents were not added: ${names.slice(0, 3).join(", ")}${names.length > 3 ? "…" : ""}`,
    no_files_inside: "There is no file in it that can be added.", left_files: (n) => `${n} more files were not added.`, more_files: (n) => `${n} more files`, cancel_rest: "Cancel the other files", all_files: (n) => `All ${n} files`,
    documents: "Documents", attach: "Add files", files_here: "Files of this chat", bases: "Knowledge bases",
    base_name: "Name of a new base", address: "Web address https://…", add_address: "Add", make: "Create",
    documents_hint: (mb) => `PDF, Word, PowerPoint, Excel, web pages, Markdown, text and pictures, up to ${mb} MB each. They stay on this server.`,
    add_files: "Add files", use_base: (n) => `Answer from the knowledge base “${n}”`, remove: (n) => `Remove ${n}`,
    remove_base: (n) => `Delete the knowledge base “${n}”`, waiting_file: "waiting",
    reading: (d, n) => (n ? `reading page ${d} of ${n}` : "reading"), pages: (n) => `${n} pages`, ocr_pages: (n) => `${n} read by OCR`,
    blank_pages: (n) => `${n} blank`, unread_pages: (n) => `${n} unreadable`, uploading: "uploading", no_files: "No files yet",
    too_large: (n, mb) => `${n} is larger than ${mb} MB; split it, then add the parts.`, cancel_file: (n) => `Cancel ${n}`,
    source: "Source", sources: "Sources", page_number: (n) => `page ${n}`,
    source_gone: "This file was removed or changed; this is what it said at the time.",
    quotation: "The model gave no answer with a source; this is the closest passage", refusal: "The documents do not hold the answer",
    drop: "Drop to add to this chat", base: (n) => `Base ${n}`, files_title: "Files", absent: (names) => `Not used, as deleted or empty: ${names.join(", ")}`,
    unread: (names) => `Still being read, and not used: ${names.join(", ")}`,
    unseen: (names) => `Not used, as this model takes no pictures: ${names.join(", ")}`, open_source: (n, f) => `Open source ${n}: ${f}`,
    send_edit: "Send the change", table: "Table", first_title: "New chat",
  },
};

const saved = localStorage.getItem("language");
const browser = (navigator.languages || [navigator.language]).find((l) => /^(zh|en)/i.test(l)) || "en";
let language = saved in WORDS ? saved : browser.toLowerCase().startsWith("zh") ? "zh" : "en";

export const inChinese = () => language === "zh";

export const say = (name, ...values) => {
  const found = WORDS[language][name];
  return typeof found === "function" ? found(...values) : found;
};

export function translate(root = document) {
  document.documentElement.lang = language;
  for (const e of root.querySelectorAll("[data-words]")) e.textContent = say(e.dataset.words);
  for (const e of root.querySelectorAll("[data-placeholder]")) e.placeholder = say(e.dataset.placeholder);
  for (const e of root.querySelectorAll("[data-label]")) {
    e.setAttribute("aria-label", say(e.dataset.label));
    if (e.matches("button")) e.title = say(e.dataset.label);
  }
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
}
