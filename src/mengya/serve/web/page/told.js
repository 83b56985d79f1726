// What the server says, in the language of the page. It says it in English, and its answers are kept so, for readers of
// both languages.

import { inChinese } from "./words.js";

// {}: a name, a number, … {0}: the first of them; {0!}: the first, which is itself something that is said here.
const CHINESE = {
  "there is no such conversation; it may have been deleted": "没有这个会话，可能已被删除",
  "the message is empty; write one": "消息是空的，请写点什么",
  "the message has {} characters; at most {} are taken": "消息有 {0} 个字符，最多 {1} 个",
  "the message is larger than {} MB": "消息超过 {0} MB，请缩短",
  "{} pictures are too many for one question; at most {} are taken": "一个问题最多带 {1} 张图片，这里有 {0} 张",
  "only an answer can be written again": "只有回答可以重写",
  "there is no such source; open the conversation anew": "没有这个出处，请重新打开会话",
  "too many answers are being written; stop one, or wait for it": "正在写的回答太多，请停止一个，或等它写完",
  "the title is empty; write one": "标题是空的，请写一个",
  "the name is empty; write one": "名字是空的，请写一个",
  "model and system must be texts": "模型名和系统提示词必须是文字",
  "the system prompt has {} characters; at most {} are taken": "系统提示词有 {0} 个字符，最多 {1} 个",
  "bases must be a list of places": "资料库必须是列表",
  "{}={} is not usable; {}": "{0!} 不能是 {1}：{2!}",
  "{}={} is out of range; choose {}": "{0!} 不能是 {1}，应选{2!}",
  "temperature": "温度",
  "top_k": "Top-k",
  "top_p": "Top-p",
  "repetition_penalty": "重复惩罚",
  "max_new_tokens": "最长回答",
  "seed": "随机种子",
  "0 (always the likeliest token) or more, as 0.7": "0（总取最可能的词元）或更大的数，例如 0.7",
  "0 (off) or a number of tokens, such as 50": "0（关闭）或词元数，例如 50",
  "above 0 and at most 1, such as 0.9; 1 turns it off": "大于 0、不超过 1 的数，例如 0.9；1 为关闭",
  "above 0; 1 turns it off, 1.1 is mild": "大于 0 的数；1 为关闭，1.1 较轻",
  "1 or more, such as 256": "1 或更大的数，例如 256",
  "a whole number of at most 63 bits": "不超过 63 位的整数",
  "input should be a valid integer{}": "应为整数",
  "input should be a valid number{}": "应为数字",
  "there is nothing here": "这里什么也没有",
  "this is no key": "这不是密钥",
  "sign in first: open the page anew": "请先登录：重新打开页面",
  "pages of other sites may not ask here": "其他网站的页面不能在这里提问；如果经过代理，代理必须保留 Host",
  "this server answers only as {}; start it with --keys": "这台服务器只在 {0} 这个地址上回答；要从别处访问，请用 --keys 启动它",
  "a call is {\"data\": [...]}": "请求的格式不对，请重新载入页面",
  "this call takes {} values": "请求的格式不对（应有 {0} 个值），请重新载入页面",
  "a value of this call is of another type": "请求的格式不对，请重新载入页面",
  "the server failed; its log says where": "服务器出错了，原因见它的日志",
  "the answer failed ({}); try again": "回答出错了（{0}），请再试一次",
  "this answer is not saved yet: {}": "这个回答还没有保存：{0!}",
  "another process has been writing to the conversations for long; try again": "会话数据库一直被别的程序占用，请再试一次",
  "the disk with the conversations is full; free space, then try again": "存放会话的磁盘已满，请腾出空间后再试",
  "the conversations cannot be read or written ({}); look at their folder, or try again": "会话无法读写（{0}），请检查它们所在的文件夹，或再试一次",
  "{} cannot be shared by many readers here ({}); use a local disk": "{0} 在这里不能供多人使用（{1}），请放到本机磁盘上",
  "No space left on device": "磁盘已满",
  "Disk quota exceeded": "磁盘配额已用完",
  "Permission denied": "没有权限",
  "Read-only file system": "磁盘只读",
  "Input/output error": "磁盘读写出错",
  "{} cannot be kept ({}); free space on the disk": "{0} 无法保存（{1!}），请腾出磁盘空间",
  "{}; free space on the disk": "{0!}，请腾出磁盘空间",

  "no backup was made: {}": "没有生成备份：{0!}",
  "a conversation is exported as .md or .json": "会话只能导出为 .md 或 .json",
  "this is no backup of conversations; give a file that was exported here": "这不是会话备份，请选择从这里导出的文件",
  "this backup is of another format, {}; this program reads {}: update it": "这个备份的格式是 {0}，这个版本只能读 {1}，请更新程序",
  "this backup is of another format, {}; this program reads {}: give the file as it was exported": "这个备份的格式是 {0}，这个版本只能读 {1}，请选择导出的原文件",
  "the conversation {} in this backup is damaged; nothing was taken in": "备份中的会话“{0}”已损坏，什么也没有导入",
  "a picture in this backup is damaged; nothing was taken in": "备份中有一张图片已损坏，什么也没有导入",
  "the backup has more than {} entries": "备份中的条目超过 {0} 个",
  "the backup is damaged or cut off ({}); export it again": "备份已损坏或不完整（{0}），请重新导出",
  "a list in this backup is damaged; export it again": "备份中的一个列表已损坏，请重新导出",
  "{} in the backup has no text": "备份中的 {0} 没有文字",
  "{} in the backup is no document that was exported here": "备份中的 {0} 不是从这里导出的资料",
  "{} in the backup is no picture that was exported here": "备份中的 {0} 不是从这里导出的图片",
  "unpacked, the backup is larger than what is allowed; it looks like an archive bomb": "备份解压后太大，像是压缩炸弹",

  "{} is larger than {} MB, which is the most; split it": "{0} 超过 {1} MB 的上限，请拆分",
  "{} files are waiting or have failed already; wait, or clear those": "已有 {0} 个文件在等待或读取失败，请等一等，或清除失败的文件",
  "{} is no place for files": "文件不能放在 {0}",
  "there is no file {} here; it may have been removed": "这里没有文件 {0}，可能已被移除",
  "this server fetches no web addresses; save the page, and add the file": "这台服务器不读取网页地址，请把网页保存后添加文件",
  "there is a knowledge base {} already; choose another name": "已有资料库“{0}”，请换一个名字",
  "there is no knowledge base {}; make it with mengya index": "没有资料库 {0}，可能已被删除",
  "a knowledge base has a name of 1 to {} characters, not {}": "资料库的名字应为 1 到 {0} 个字符，不能是 {1}",
  "a file in a knowledge base needs a name; give one": "资料库中的文件需要名字",
  "knowledge base {}: another process has been writing for long; try again": "资料库 {0} 一直被别的程序占用，请再试一次",
  "knowledge base {}: the disk is full; free space, then try again": "资料库 {0}：磁盘已满，请腾出空间后再试",
  "knowledge base {} cannot be opened ({}); check its folder's rights": "资料库 {0} 打不开（{1}），请检查文件夹的权限",
  "knowledge base {} is damaged ({}); delete it and index its files again": "资料库 {0} 已损坏（{1}），请删除后重新添加文件",
  "{} cannot hold a database that many use; choose a folder on a disk of this machine": "{0} 不能存放多人使用的数据库，请选本机磁盘上的文件夹",
  "{} is no knowledge base of this version of mengya; index its files again": "{0} 不是这个版本的资料库，请重新添加文件",
  "the knowledge base {} has vectors of {}, not of {}; use that one, or index its files into another base": "资料库 {0} 的向量来自 {1}，而不是 {2}，请用前者，或把文件加到另一个资料库",
  "the knowledge base has vectors of {}, not of {}; use that one, or index its files into another base": "资料库的向量来自 {0}，而不是 {1}，请用前者，或把文件加到另一个资料库",
  "searching documents needs rjieba and OpenCC; install them: pip install 'mengya[documents]'": "搜索资料需要安装 rjieba 和 OpenCC：pip install 'mengya[documents]'",

  "{} could not be read ({}); try again": "{0} 没能读取（{1}），请再试一次",
  "{}: no text found": "{0}：没有找到文字",
  "{}: no text found ({})": "{0}：没有找到文字（{1!}）",
  "pages {} could not be read": "第 {0} 页读不出",
  "pages {} are blank": "第 {0} 页空白",
  "there is no such file any more; add it again": "文件已不存在，请重新添加",
  "it has {}, and {} is the most that is read; split it": "文件有 {0}，最多读 {1}，请拆分",
  "the file is empty": "文件是空的",
  "reading it took longer than {} seconds{}; split it": "读取超过 {0} 秒{1!}，请拆分",
  "its reader stood still for {} seconds{}; it may be damaged": "读取停顿超过 {0} 秒{1!}，文件可能已损坏",
  " after page {} of {}": "（读到第 {0}/{1} 页）",
  "its reader crashed (exit code {}): the file is damaged, or needs more than {} MB of memory; open it and save it again, or split it": "读取时崩溃（退出码 {0}）：文件已损坏，或需要超过 {1} MB 内存；请打开后另存，或拆分",
  "its reader gave too much text; split the file": "读出的文字太多，请拆分文件",
  "reading it needs more than {} MB of memory; split the file": "读取需要超过 {0} MB 内存，请拆分文件",
  "it cannot be read and may be damaged ({}); open it and save it again": "读不了，可能已损坏（{0}），请打开后另存",
  "its elements are nested too deep, perhaps because many are never closed; what follows was not read": "网页的元素嵌套太深，可能有很多没有闭合；后面的内容没有读取",
  "{} files need the library {}; pip install 'mengya[documents]'": "读 {0} 文件需要安装 {1}：pip install 'mengya[documents]'",
  "it is encrypted; open it with its password and save it without": "文件已加密，请用密码打开，另存为不加密的文件",
  "this is binary data, neither text nor a format that is read here; convert it to PDF or text: {}": "这是二进制数据，既不是文字，也不是能读的格式，请转换为 PDF 或文本。{0!}",
  "this is {}: {}": "这是{0!}。{1!}",
  "PDF, docx, pptx, xlsx, csv, Markdown, html, text and pictures are read": "能读的有 PDF、docx、pptx、xlsx、csv、Markdown、html、文本和图片",
  "an RTF file; save it as docx": " RTF 文件，请另存为 docx",
  "a compressed file; unpack it and add the files inside": "压缩文件，请解压后添加里面的文件",
  "a 7z archive; unpack it and add the files inside": " 7z 压缩包，请解压后添加里面的文件",
  "a rar archive; unpack it and add the files inside": " rar 压缩包，请解压后添加里面的文件",
  "a zip archive, but no Word, PowerPoint or Excel document; unpack it and add the files": " zip 压缩包，不是 Word、PowerPoint 或 Excel 文档，请解压后添加里面的文件",
  "a program, not a document": "程序，不是文档",
  "a database, not a document; export what you need as csv": "数据库，不是文档，请把需要的内容导出为 csv",
  "a DjVu file; save it as PDF": " DjVu 文件，请另存为 PDF",
  "a help file (chm); save its pages as html": "帮助文件（chm），请把页面另存为 html",
  "a PostScript file; save it as PDF": " PostScript 文件，请另存为 PDF",
  "a recording; write down what is said, and add the text": "录音，请把说的话写成文字后添加",
  "an XML file of Excel 2003; save it as xlsx": " Excel 2003 的 XML 文件，请另存为 xlsx",
  "an XML file of Word; save it as docx": " Word 的 XML 文件，请另存为 docx",
  "an XML file of LibreOffice; save it as docx, xlsx or pptx": " LibreOffice 的 XML 文件，请另存为 docx、xlsx 或 pptx",
  "an e-book (epub); save it as html or PDF": "电子书（epub），请另存为 html 或 PDF",
  "a LibreOffice file (odt, ods, odp); save it as docx, xlsx or pptx": " LibreOffice 文件（odt、ods、odp），请另存为 docx、xlsx 或 pptx",
  "an OFD file; save it as PDF": " OFD 文件，请另存为 PDF",
  "a Pages, Numbers or Keynote file; export it as docx, xlsx, pptx or PDF": " Pages、Numbers 或 Keynote 文件，请导出为 docx、xlsx、pptx 或 PDF",
  "an Excel file of the binary format (xlsb); save it as xlsx": "二进制格式的 Excel 文件（xlsb），请另存为 xlsx",
  "a video, or a picture as HEIC or AVIF; save a picture as PNG or JPEG": "视频，或 HEIC、AVIF 图片；图片请另存为 PNG 或 JPEG",
  "a page saved with its pictures (mht); save it as html or PDF": "连图片一起保存的网页（mht），请另存为 html 或 PDF",
  "an e-mail (eml); save it as html or PDF": "电子邮件（eml），请另存为 html 或 PDF",
  "an e-mail of Outlook (msg); save it as html or PDF": " Outlook 邮件（msg），请另存为 html 或 PDF",
  "a file of an old Office format (doc, xls, ppt); save it as docx, xlsx or pptx": "旧版 Office 文件（doc、xls、ppt），请另存为 docx、xlsx 或 pptx",
  "the archive has {} entries; at most {} are read": "压缩包里有 {0} 项，最多读 {1} 项",
  "the archive is damaged or cut off ({}); get it again, or open it and save it": "文件已损坏或不完整（{0}），请重新获取，或打开后另存",
  "the archive is packed in a way that Office does not use; open it and save it again": "压缩方式不是 Office 用的，请打开后另存",
  "unpacked it is larger than what is allowed; it looks like an archive bomb": "解压后太大，像是压缩炸弹",
  "{} inside it has {} bytes, not {} as it says": "其中的 {0} 有 {1} 字节，与声明的 {2} 不符",
  "{} inside it declares XML entities, as attacks do; it is not read": "其中的 {0} 声明了 XML 实体，这是攻击的做法，不读",
  "it has no main part and is damaged; open it and save it again": "文件缺少主要部分，已损坏，请打开后另存",
  "its part {} is damaged; open it and save it again": "其中的 {0} 已损坏，请打开后另存",
  "this PDF is damaged or cut off, and no page of it can be read; get it again": "这个 PDF 已损坏或不完整，一页也读不出，请重新获取",
  "the picture has {} x {} pixels; {} in all is the most; make it smaller": "图片有 {0} x {1} 像素，最多共 {2} 像素，请缩小",
  "the picture has more than {} pixels; make it smaller": "图片超过 {0} 像素，请缩小",
  "the picture is damaged, or of a kind that is not read; save it as PNG or JPEG": "图片已损坏，或是不能读的格式，请另存为 PNG 或 JPEG",
  "this is no picture that can be read ({}); save it as JPEG": "这不是能读的图片（{0}），请另存为 JPEG",

  "no text was found": "没有找到文字",
  "only the first {} characters were read": "只读了前 {0} 个字符",
  "the name ends like {}, but the content is {}": "扩展名像 {0}，内容却是 {1}",
  "{} places could not be decoded as {}": "有 {0} 处不能按 {1} 解码",
  "two encodings are mixed, utf-8 and {}; each line was read in its own": "混有两种编码（utf-8 和 {0}），每行按自己的编码读",
  "quotation marks do not pair up; they were read as characters": "引号不成对，当作普通字符读",
  "quotation marks inside of cells are not doubled; some were left out": "单元格里的引号没有写成两个，有些被略去",
  "it holds {}": "其中有{0!}",
  "left out: {} ({})": "略去：{0!}（{1}）",
  "left out: {} {}": "略去：{0} {1!}",
  "left out: deleted passages (tracked changes) ({})": "略去：修订中删除的段落（{0}）",
  "left out: {} characters of pictures and the like that are written as base64": "略去：以 base64 写入的图片等 {0} 个字符",
  "left out: {} addresses of links, where a line has many": "略去：一行中过多的链接地址 {0} 个",
  "files inside of it": "内嵌的文件",
  "comments": "批注",
  "hidden passages": "隐藏的段落",
  "footnotes that the file lacks": "文件中缺失的脚注",
  "frames, which are pages of their own": "个框架（另外的网页）",
  "scripts": "段脚本",
  "characters of hidden text": "个隐藏文字的字符",
  "characters of menus and the like": "个菜单等的字符",
  "pictures, whose text is not read; save it as PDF to have it read by OCR": "图片，其中的文字没有读；另存为 PDF 才能识别",
  "pictures alone; save it as PDF to have them read by OCR": "只有图片；另存为 PDF 才能识别",
  "it is a picture, and OCR is not installed; pip install 'mengya[ocr]'": "这是图片，而没有安装文字识别：pip install 'mengya[ocr]'",
  "a picture in which OCR found no text": "图片中没有识别出文字",
  "a picture of {} pixels; {} is the most": "图片有 {0} 像素，最多 {1} 像素",
  "vertical text, order uncertain": "竖排文字，顺序不确定",
  "this page is damaged": "这一页已损坏",
  "{} characters could not be read: their font does not say what they are": "{0} 个字符读不出：字体没有说明它们是什么",
  "slanted text, such as watermarks, was left out": "略去了水印等斜着的文字",
  "it has {} pages; only the first {} were read": "共 {0} 页，只读了前 {1} 页",
  "pages after {} were not read": "第 {0} 页之后没有读",
  "the file seems to be cut off; pages may be missing": "文件似乎不完整，可能缺页",
  "it is an XFA form, which is not read whole; print it as a PDF file to have it read": "这是 XFA 表单，不能全部读出；请打印为 PDF 文件",
  "it has {} sheets; only the first {} were read": "共 {0} 张工作表，只读了前 {1} 张",
  "it has {} slides; only the first {} were read": "共 {0} 张幻灯片，只读了前 {1} 张",
  "hidden slide": "隐藏的幻灯片",
  "hidden sheet": "隐藏的工作表",
  "hidden rows or columns were read, too": "隐藏的行或列也读了",
  "{} formulas without a stored result; open the file in Excel and save it": "{0} 个公式没有存结果；请用 Excel 打开后保存",
  "a chart or a sheet of macros": "图表或宏表",

  "web addresses need the library httpx; pip install 'mengya[documents]'": "读网页地址需要安装 httpx：pip install 'mengya[documents]'",
  "{}: this is no web address; it looks like https://example.com/page": "{0}：这不是网页地址，应像 https://example.com/page",
  "{}: it does not answer ({}); check the address": "{0}：没有回应（{1}），请检查地址",
  "{}: it took longer than {} seconds; try again": "{0}：超过 {1} 秒没有读完，请再试一次",
  "{}: more than {} redirects; use the address at the end of them": "{0}：跳转超过 {1} 次，请用最后的地址",
  "{}: the server answers {}; check the address in a browser": "{0}：对方服务器回答 {1}，请在浏览器里检查地址",
  "{}: only addresses that begin with http:// or https:// are read": "{0}：只读以 http:// 或 https:// 开头的地址",
  "{}: an address with a user name in it is not read": "{0}：不读带用户名的地址",
  "{}: this address is a number; write the name of the server": "{0}：这个地址是数字，请写服务器的名字",
  "{}: there is no server of the name {}; check the address": "{0}：没有名为 {1} 的服务器，请检查地址",
  "{}: this address is inside this machine or its network, and is not read": "{0}：这个地址在本机或内部网络里，不读",
  "{}: it is packed as {}, which is not read; download it and add the file": "{0}：压缩方式是 {1}，不能读，请下载后添加文件",
  "{}: it is larger than {} MB, the most that is read": "{0}：超过 {1} MB 的上限",

  "the message takes {} tokens, but this model has room for {} (its context has {}); shorten it": "消息占 {0} 个词元，这个模型只能放 {1} 个（上下文 {2}），请缩短",
  "the prompt has {} tokens, which leave no room for an answer in the context of {}; shorten it": "提示有 {0} 个词元，在 {1} 的上下文里没有留下回答的位置，请缩短",
  "the question and a part of a passage take {} tokens, {} more are for the answer, and this model has a context of {}; shorten the question": "问题和资料中的一段共占 {0} 个词元，回答还要 {1} 个，而模型的上下文是 {2}，请缩短问题",
  "the system prompt, the question and a part of a passage take {} tokens, {} more are for the answer, and this model has a context of {}; shorten the system prompt or the question": "系统提示词、问题和资料中的一段共占 {0} 个词元，回答还要 {1} 个，而模型的上下文是 {2}，请缩短系统提示词或问题",
  "the prompt is empty; give at least one token": "提示是空的",
  "the model failed": "模型出错了",
  "the model has stopped working on this answer; try again, or start it again": "模型停止了工作，请再试一次，或重新启动它",
  "the model is being closed; ask again later": "模型正在关闭，请稍后再问",
  "the engine has stopped working; start it again": "模型的引擎已停止工作，请重新启动",
  "llama.cpp has stopped working; start it again": "llama.cpp 已停止工作，请重新启动",
  "the engine stopped in the middle of the answer; ask again": "模型的引擎在回答中途停止了，请再问一次",
  "{} has no chat template; ask it to continue a text, or give it a template": "{0} 没有对话模板，请给它一个",
  "the chat template of {} raises {}; correct the conversation, or {}": "{0} 的对话模板报错：{1}",
  "the chat template of {} leaves out what the role {} says; leave out such turns, or {}": "{0} 的对话模板不支持角色 {1}（例如系统提示词），请去掉它",
  "{} stopped in the middle of the answer; ask again": "{0} 在回答中途停止了，请再问一次",
  "{} sent no answer; give the address of a server that speaks OpenAI's protocol": "{0} 没有给出回答，请检查服务器地址（需支持 OpenAI 协议）",
  "{} said nothing for {} s; ask again later": "{0} 超过 {1} 秒没有回应，请稍后再问",
  "{} cannot be reached ({}); start the server, or correct the address": "连不上 {0}（{1}），请启动那台服务器，或改正地址",
  "{} failed: {}; ask again later": "{0} 出错了：{1}；请稍后再问",
  "{} sent what is no answer of OpenAI's protocol; give the address of a server that speaks it": "{0} 的回应不符合 OpenAI 协议，请检查服务器地址",
  "the connection to {} broke ({}); ask again": "与 {0} 的连接断了（{1}），请再问一次",
  "{} refuses the key (HTTP {}); set {} to one that is valid there": "{0} 不接受密钥（HTTP {1}），请把 {2} 设为那里有效的密钥",
  "{} has no such model or path (HTTP 404: {}); correct the address, which mostly ends in /v1": "{0} 没有这个模型或路径（HTTP 404：{1!}），请改正地址，它通常以 /v1 结尾",
  "{} takes no more requests now (HTTP 429: {}); ask again later": "{0} 暂时不接受更多请求（HTTP 429：{1!}），请稍后再问",
  "{} failed (HTTP {}: {}); ask again later": "{0} 出错了（HTTP {1}：{2!}），请稍后再问",
  "{} refuses the request (HTTP {}: {}); change it": "{0} 拒绝了请求（HTTP {1}：{2!}），请修改",
  "no reason given": "没有说明原因",
  "the server ended the answer: {}; ask something else": "对方服务器中止了回答（{0}），请换个问题",
  "{}Error: {}": "运行出错（{0}Error：{1}），请再试一次"
};

const plain = (text) => text.replace(/[.*+?^$()|[\]{}\\]/g, "\\$&");
// A name has no semicolon in it, or two things that are said could be taken for one.
const pattern = (english, chinese) => new RegExp(`^${english.split("{}").map(plain).reduce((before, after, n) =>
  `${before}(${chinese.includes(`{${n - 1}!}`) ? "[^]*?" : "(?:(?!; )[^])*?"})${after}`)}$`);
// Longer ones first, as they say more.
const PATTERNS = Object.entries(CHINESE).sort(([one], [two]) => two.length - one.length)
  .map(([english, chinese]) => [pattern(english, chinese), chinese]);
const known = new Map();

// The same in English, and where nobody has said it in Chinese.
export function told(text) {
  if (!inChinese() || !text) return text;
  if (!known.has(text)) known.set(text, ofPages(text) ?? whole(text) ?? listed(text) ?? named(text) ?? text);
  return known.get(text);
}

function whole(text) {
  for (const [english, chinese] of PATTERNS) {
    const match = english.exec(text);
    if (match) return chinese.replace(/\{(\d)(!?)\}/g, (_, number, said) => (said ? told(match[Number(number) + 1]) : match[Number(number) + 1]));
  }
  return null;
}

// Several things, one behind the other; each may have a semicolon in it.
function listed(text) {
  const parts = text.split("; "), said = [];
  while (parts.length) {
    let count = parts.length, one = null;
    while (count && (one = whole(parts.slice(0, count).join("; "))) === null) count--;
    if (one === null) return null;
    said.push(one);
    parts.splice(0, count);
  }
  return said.join("；");
}

const ofPages = (text) => (/^[\d, …]+: /.test(text) ? named(text, (pages) => `第 ${pages} 页`) : null);

// What is said of a file.
function named(text, name = (file) => file) {
  for (let at = text.indexOf(": "); at >= 0; at = text.indexOf(": ", at + 1)) {
    const rest = text.slice(at + 2), said = whole(rest) ?? listed(rest);
    if (said !== null) return `${name(text.slice(0, at))}：${said}`;
  }
  return null;
}
